"""The mathematics of Bone and its plumbing to PEFT: all that ``import bone_peft`` needs."""
