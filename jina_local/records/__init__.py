"""Texts in, vectors out: files, pipes and their formats."""
