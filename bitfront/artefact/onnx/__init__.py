"""ONNX: a configuration as graphs that ONNX Runtime loads."""
