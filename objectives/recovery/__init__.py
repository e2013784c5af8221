"""Recovery: distilled plans, P4Q's prompt and adapter, and their training."""
