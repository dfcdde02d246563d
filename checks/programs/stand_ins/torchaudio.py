"""LLaMA-Factory imports it, for models that hear. Its wheels for CPUs are not on the package index."""
