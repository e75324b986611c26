"""A task's adapter in the three kinds of files that hold one, and the rules that they share."""
