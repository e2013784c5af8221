"""Data: sources, splits, and the tasks that are made of them."""
