"""RWKV-7 (x070): its ``.pth`` checkpoints as Hugging Face models, and back. Needs the extra ``rwkv``."""
