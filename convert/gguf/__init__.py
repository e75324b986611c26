"""A checkpoint -> GGUF files for llama.cpp."""
