"""Adapters and base models as files: formats, conversion, merging."""
