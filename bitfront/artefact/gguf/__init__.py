"""gguf: a configuration as the files that llama.cpp loads, with the codes as measured."""
