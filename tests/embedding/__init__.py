"""Tests of `embedding`."""
