"""Observability: structured logs, and metrics for Prometheus."""
