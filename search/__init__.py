"""Deciding: partition, integer program, pruning, samplers and the front; no torch, no SQL."""
