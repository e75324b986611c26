"""How fast a model is on this machine: its weight types and other programs in turns, each in a process of its own."""

BESIDE = ("llama", "onnxruntime", "transformers", "transformers-bf16")  # the other programs
