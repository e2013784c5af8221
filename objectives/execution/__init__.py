"""Execution: streams of samples run through a model under a plan, and caches between runs."""
