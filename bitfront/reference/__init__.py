"""The bundled reference: digit scenes, and a small trained CLIP that reads them."""
