"""Evaluation: how well a configuration does its task, and a configuration at work."""
