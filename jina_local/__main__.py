"""`python -m jina_local`: hands over to the command line."""

import os
import signal
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    """Ctrl-C while modules are being imported: nothing is open yet."""
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from .cli.main import run

    run()
