"""Counts of a server as Prometheus reads them. No text, no vector and no name of a caller is among them."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict

from ..inference.queue import Counts

_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


class Metrics:
    """What has been answered, by route and status."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: dict[str, list[int]] = defaultdict(lambda: [0] * (len(_BOUNDS) + 1))
        self._sums: dict[str, float] = defaultdict(float)
        self.under_way = 0

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one answer. `route` is a path of the server's own, never one that a caller made up."""
        with self._lock:
            self._requests[route, status] += 1
            self._seconds[route][bisect_left(_BOUNDS, seconds)] += 1
            self._sums[route] += seconds

    def text(self, queues: dict[str, Counts]) -> str:
        """All counts; `queues`: those of each model."""
        with self._lock:
            requests, sums = dict(self._requests), dict(self._sums)
            seconds = {route: list(counts) for route, counts in self._seconds.items()}
        lines = ["# TYPE jina_local_requests_total counter"]
        for (route, status), count in sorted(requests.items()):
            lines.append(f'jina_local_requests_total{{route="{route}",status="{status}"}} {count}')
        lines.append("# TYPE jina_local_request_seconds histogram")
        for route, buckets in sorted(seconds.items()):
            total = 0
            for bound, count in zip((*map(str, _BOUNDS), "+Inf"), buckets, strict=True):
                total += count
                lines.append(f'jina_local_request_seconds_bucket{{route="{route}",le="{bound}"}} {total}')
            lines.append(f'jina_local_request_seconds_sum{{route="{route}"}} {sums[route]:.6f}')
            lines.append(f'jina_local_request_seconds_count{{route="{route}"}} {total}')
        lines += ["# TYPE jina_local_requests_under_way gauge", f"jina_local_requests_under_way {self.under_way}"]
        for name, kind, value in (
            ("passes_total", "counter", "passes"),
            ("texts_total", "counter", "texts"),
            ("tokens_total", "counter", "tokens"),
            ("engine_seconds_total", "counter", "seconds"),
            ("queued_tokens", "gauge", "admitted"),
            ("tokens_per_second", "gauge", "rate"),
        ):
            lines.append(f"# TYPE jina_local_{name} {kind}")
            for model, counts in queues.items():
                lines.append(f'jina_local_{name}{{model="{model}"}} {getattr(counts, value):.10g}')
        return "\n".join(lines) + "\n"
