"""Tests of `formats`."""
