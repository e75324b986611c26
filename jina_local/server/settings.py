"""The limits of a server and whom it answers."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """The defaults are those of a server for one person's programs on one machine."""

    host: str = "127.0.0.1"
    port: int = 8765
    uds: str | None = None  # a Unix socket in place of host and port
    names: tuple[str, ...] = ()  # more names that a Host header may have
    origins: tuple[str, ...] = ()  # web pages of these origins may ask
    keys: tuple[str, ...] = ()  # of which a request has to have one; none: no key is asked for
    max_body: int = 8 * MIB  # bytes
    max_header: int = 16 * 1024  # bytes
    max_connections: int = 128
    max_inputs: int = 2048  # texts of a request: OpenAI's number
    max_request_tokens: int = 131_072
    # Characters. Most texts have no such limit: no more of them is tokenised than a model reads. Two kinds are read
    # whole before their tokens are known.
    max_request_chars: int = 8 * 131_072  # of texts that are read in windows or chunked late
    max_question: int = 65_536  # every word of a question to an index is looked up
    max_batch_tokens: int | None = None  # of a pass; None: the engine's own budget
    max_wait_ms: float = 0.0
    queue_tokens: int | None = None  # under way at a time; None: as many as `queue_seconds` take
    queue_seconds: float = 20.0
    timeout: float = 60.0  # seconds for a request
    header_seconds: float = 5.0
    body_seconds: float = 30.0
    body_rate: int = 1024  # bytes a second, once `header_seconds` are over
    keep_alive_seconds: float = 5.0
    drain_seconds: float = 30.0
    inference_file: str | None = None  # keeps Elastic's inference endpoints; None: they end with the server
    idle_exit: float | None = None  # seconds without a request after which the server ends

    @property
    def is_loopback(self) -> bool:
        """Whether nobody beyond this machine can reach the server."""
        import ipaddress

        if self.uds is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
