"""Choosing the codes of one weight matrix: to the nearest level, or by the layer's inputs."""
