"""Finding a model's layers, and rewriting them so that each weight belongs to a called module."""
