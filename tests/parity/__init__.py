"""Both engines against transformers."""
