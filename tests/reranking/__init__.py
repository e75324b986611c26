"""Tests of `reranking`."""
