"""What an adapter will cost, and what it does cost."""
