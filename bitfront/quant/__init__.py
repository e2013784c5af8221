"""Quantizer numerics: weights, inputs, and the bits that a packed checkpoint holds."""
