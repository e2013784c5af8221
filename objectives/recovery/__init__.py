"""Recovery: P4Q's prompt and adapter, and their training."""
