"""Loading models from open_clip, transformers, or the bundled reference."""
