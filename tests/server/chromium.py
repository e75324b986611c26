"""Headless Chromium through its DevTools protocol over a pipe: no driver, no websocket, nothing to install but it."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Chromium reads commands from descriptor 3 and writes answers to 4; a shell cannot be trusted with two-digit numbers.
_LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_KEYS = {"Enter": ("\r", 13), "Tab": ("", 9), "/": ("/", 191), "ArrowLeft": ("", 37), "ArrowUp": ("", 38),
         "ArrowRight": ("", 39), "ArrowDown": ("", 40)}  # fmt: skip
_CTRL = 2


def executable() -> str | None:
    """Where it is; None if there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """A browser with one page."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers, self._rest = commands, answers, b""
        self._number, self._session = 0, ""
        self.events: list[dict[str, Any]] = []
        self._stand_ins: dict[str, Any] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command, and wait for its answer. What happens meanwhile is in `events`."""
        number = self._send(method, params)
        deadline = time.monotonic() + 30
        while True:
            found = self._next(deadline)
            if found.get("id") == number:
                assert "error" not in found, (method, found["error"])
                return found["result"]  # type: ignore[no-any-return]
            if found.get("method") == "Fetch.requestPaused":
                self._answer(found["params"])
            elif "method" in found:
                self.events.append(found)

    def _send(self, method: str, params: dict[str, Any]) -> int:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        return self._number

    def stand_in(self, answers: dict[str, Any]) -> None:
        """Answer these paths with this JSON in the server's place; {} ends it."""
        self._stand_ins = answers
        self.call("Fetch.enable", patterns=[{"urlPattern": f"*{path}"} for path in answers])

    def _answer(self, paused: dict[str, Any]) -> None:
        body = self._stand_ins[urlsplit(paused["request"]["url"]).path]
        self._send(
            "Fetch.fulfillRequest",
            {
                "requestId": paused["requestId"],
                "responseCode": 200,
                "responseHeaders": [{"name": "content-type", "value": "application/json"}],
                "body": b64encode(json.dumps(body).encode()).decode(),
            },
        )

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)  # type: ignore[no-any-return]

    def visit(self, url: str) -> None:
        """Go to a page, as new."""
        self.events.clear()
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript gives; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 20) -> None:
        """Return once an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < deadline, (expression, self.value("document.body.innerText"), self.errors())
            time.sleep(0.05)

    def type(self, text: str) -> None:
        """Put a text where the cursor is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, ctrl: bool = False) -> None:
        """Press a key, and let it go."""
        text, code = _KEYS[key]
        word: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": _CTRL * ctrl}
        self.call("Input.dispatchKeyEvent", type="keyDown", **word, **({"text": text} if text and not ctrl else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **word)

    def look(self, width: int, height: int, scheme: str = "light", scale: float = 1) -> None:
        """The window's size, and whether it is dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self) -> bytes:
        """The window as PNG."""
        return b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def errors(self) -> list[Any]:
        """What the console got since the visit: exceptions, errors, refusals by the page's policy. No statuses."""
        self.value("0")
        found = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"])
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(params)
            elif event["method"] == "Log.entryAdded" and params["entry"]["source"] != "network":
                found.append(params["entry"])
        return found

    def requested(self) -> set[str]:
        """The addresses that were asked for since the visit."""
        return {e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"}


@contextmanager
def browsing(program: str, folder: Path) -> Iterator[Browser]:
    """Start the browser with a profile of its own; what it downloads goes into `folder`."""
    (child_in, commands), (answers, child_out) = os.pipe(), os.pipe()
    high = [fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (child_in, child_out)]
    for one in (child_in, child_out):
        os.close(one)
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    process = subprocess.Popen(
        [
            sys.executable, "-c", _LAUNCH, *map(str, high), program, "--headless=new", "--remote-debugging-pipe",
            f"--user-data-dir={folder / 'profile'}", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage",
            "--disable-background-networking", "--hide-scrollbars", *sandbox,
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=high,
    )  # fmt: skip
    for one in high:
        os.close(one)
    try:
        browser = Browser(commands, answers)
        browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        yield browser
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(commands)
        os.close(answers)
