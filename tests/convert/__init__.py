"""Tests of the package `convert`."""
