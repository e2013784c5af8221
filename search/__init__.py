"""Deciding: partition, integer program, pruning, samplers and the Pareto front; no torch, no SQL."""
