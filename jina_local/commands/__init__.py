"""The commands of `python -m jina_local`, one file each: `parser()` says what it takes, `run()` does it."""
