"""Runtimes: where the time of a layer, and of the whole image tower, is taken."""
