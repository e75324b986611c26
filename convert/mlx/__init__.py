"""A checkpoint -> folders for MLX."""
