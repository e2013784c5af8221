"""Profiling: calibration, entropies, cells, clips and visual-encoder optimisation."""
