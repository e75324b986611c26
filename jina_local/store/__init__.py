"""A model by its name -> the place that has its files; what is there, whether it is whole, removed, fetched."""
