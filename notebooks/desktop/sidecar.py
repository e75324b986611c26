"""The sidecar of a desktop app: `serve`, ended by the end of its standard input, whichever way the app ends."""

import os
import signal
import sys
import threading

from jina_local.__main__ import run


def end_with_the_app() -> None:
    """Wait until nobody holds the other end of standard input, then drain as at SIGTERM."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    if sys.stdin is None:
        sys.exit("the sidecar ends with its standard input, and was started without one.")
    threading.Thread(target=end_with_the_app, daemon=True).start()
    sys.argv[1:1] = ["serve", "--model", "pico", "--offline"]
    run()
