"""The command line, a file for each command: `parser()` says what it takes, `run()` does it."""
