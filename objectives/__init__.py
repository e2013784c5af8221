"""Measuring: data, calibration, entropies, cells, evaluation, recovery and cost of a model."""
