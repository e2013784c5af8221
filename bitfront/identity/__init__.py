"""What results depend on: the identities of model, quantizer and splits, and every cache key."""
