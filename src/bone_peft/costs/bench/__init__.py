"""How fast training and inference are, ours and our peers', side by side in one process."""
