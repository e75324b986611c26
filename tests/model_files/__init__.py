"""Tests of `model_files`."""
