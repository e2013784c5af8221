"""Rounding that follows a plan through the model: each layer makes up for the ones before it."""
