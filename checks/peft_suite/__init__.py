"""PEFT's own tests, run with Bone in them."""
