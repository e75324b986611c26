"""`python -m jina_local`, and the console script: hands over to the command line, deaf to no Ctrl-C on the way."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn


def run() -> NoReturn:
    """Listen for Ctrl-C, then import the rest, which takes much longer."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from .cli.main import run

    run()


def _leave(number: int, frame: FrameType | None) -> None:
    """Ctrl-C while modules are being imported: nothing is open yet."""
    os.write(2, b"interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    run()
