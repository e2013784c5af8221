"""Artefacts: a quantized model as files that other programs load without bitfront."""
