"""`python -m jina_local`: hands over to the command line."""

from .cli.main import run

if __name__ == "__main__":
    run()
