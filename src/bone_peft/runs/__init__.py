"""Data in, a trained and scored adapter out."""
