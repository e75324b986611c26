"""One file for each API that clients speak: plain dicts in, plain dicts out."""
