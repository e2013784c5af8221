"""Scheduling: which trial runs next, what came back, and what a worker takes of a node; no Ray."""
