"""Measurements of what the documents claim; no test runs them."""
