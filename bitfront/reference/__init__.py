"""The bundled references: digit scenes with a small CLIP, digit questions with a small LLaVA."""
