"""The inference endpoints that clients of Elasticsearch made, in one file."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .dialects import elastic
from .dialects.elastic import InferenceEndpoint
from .faults import Refused

Endpoints = dict[str, InferenceEndpoint]
_log = logging.getLogger("jina_local.server")


class EndpointFile:
    """The endpoints on disk. Every call reads the file, which another server may have written."""

    def __init__(self, path: Path | None) -> None:
        """path: None keeps them for as long as this process runs."""
        self._path, self._raw, self._lock = path, b"", threading.Lock()

    def all(self) -> Endpoints:
        """Every endpoint by its id."""
        raw = self._raw
        if self._path is not None:
            try:
                raw = self._path.read_bytes()
            except FileNotFoundError:
                return {}
            except OSError as error:
                raise self._refused("cannot be read", error) from None
        try:
            read = [_kept(one) for one in json.loads(raw or b"[]")]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._refused("is damaged", error) from None
        return {one.inference_id: one for one in read}

    @contextmanager
    def changing(self) -> Iterator[Endpoints]:
        """The endpoints, of which one may be added or taken away; they are written if the block ends well."""
        with self._lock:
            if self._path is None:
                endpoints = self.all()
                yield endpoints
                self._raw = _bytes(endpoints)
                return
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with _alone(self._path):
                    endpoints = self.all()
                    yield endpoints
                    _replace(self._path, _bytes(endpoints))
            except OSError as error:
                raise self._refused("cannot be written", error) from None

    def _refused(self, what: str, error: Exception) -> Refused:
        """The answer, without the path; the log has it."""
        _log.error("%s: %s (%s)", self._path, what, error)
        return Refused(500, "status_exception", f"the file of the inference endpoints {what}; the log has more.")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other server is writing the file."""
    flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path.with_name(f"{path.name}.lock"), flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _kept(one: dict[str, Any]) -> InferenceEndpoint:
    names = dict(one)
    return elastic.read_put(names.pop("task_type"), names.pop("inference_id"), names)


def _bytes(endpoints: Endpoints) -> bytes:
    return json.dumps([elastic.write_endpoint(one) for one in endpoints.values()], indent=1).encode()


def _replace(path: Path, raw: bytes) -> None:
    """Give a file new content at once. Its lock is held, so a temp file that is there is of a killed process."""
    temp = path.with_name(f".{path.name}.tmp")
    temp.unlink(missing_ok=True)
    descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temp, path)
