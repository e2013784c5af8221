"""The shared vocabulary of bitfront: precisions, plans, configurations, job specs, errors."""
