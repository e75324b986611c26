"""Texts -> vectors: request, what is fed, passes, answer."""
