"""The local server: routes, limits, models in service, and the dialects that clients speak."""
