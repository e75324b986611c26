"""A model's name -> the place of its files: found, listed, verified, removed, fetched."""
