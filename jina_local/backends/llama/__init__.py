"""llama.cpp through its low-level calls."""
