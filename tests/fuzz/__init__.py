"""Damaged files of every kind, each opened in a child process. It has the same vector, or is refused."""
