"""Converted files against their source, by a forward pass in plain numpy."""
