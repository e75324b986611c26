"""Runs in the frozen app, before its own code."""

from jina_local.children import divert

divert()
