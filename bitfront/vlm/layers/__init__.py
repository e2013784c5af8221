"""Finding a model's layers, and rewriting them so that every weight is called."""
