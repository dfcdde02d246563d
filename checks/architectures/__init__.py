"""Bone on a tiny random model of every architecture of Transformers: ``python -m checks.architectures``."""
