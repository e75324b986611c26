"""The server's throughput as a share of the library's, a lone query's latency, and llama-cpp-python's server beside.

    python -m tests.bench.serve --texts 400 --rounds 3
    python -m tests.bench.serve --rival-path FOLDER     # where llama-cpp-python[server] has its packages

Contenders take turns in one run, round after round, so that ratios are right on a machine that is busy or drifts. The
texts are of lognormal length, median 60 tokens, one in a request. Requests are sent by a process of its own, see
clients.py, over connections that are kept. CPU is that of a server with its engine's process. The last line of
standard output is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jina_local import Embedder, load
from jina_local.bench.texts import mix, texts_of
from jina_local.store.find import find
from tests.server.conftest import serving
from tests.server.door import children

from .clients import Client, request

_CLIENTS = (16, 64)
_QUERY = "Which planet is known as the Red Planet?"
_LIBRARY = "library"
_RIVAL = """
import sys
import llama_cpp, uvicorn
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings
real = llama_cpp.llama_model_default_params
def safe():  # builds by GCC 12 die of AMX
    params = real()
    params.use_extra_bufts = False
    return params
llama_cpp.llama_model_default_params = llama_cpp.llama_cpp.llama_model_default_params = safe
port, model, adapter, threads = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
settings = ModelSettings(model=model, lora_path=adapter or None, embedding=True, n_ctx=512, n_batch=512, n_ubatch=512,
                         n_threads=threads, n_threads_batch=threads, verbose=False, use_mmap=True)
uvicorn.run(create_app(server_settings=ServerSettings(port=port), model_settings=[settings]), port=port,
            log_level="error")
"""


@contextmanager
def rival(folder: str | None) -> Iterator[tuple[int, int]]:
    """llama-cpp-python's server on the package's GGUF file and adapter: its port and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = find("pico", backend="llama", offline=True)
    adapter = files.adapters.get("retrieval", "")
    path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        [sys.executable, "-c", _RIVAL, str(port), str(files.files["retrieval"]), str(adapter), str(os.cpu_count())],
        env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(20)


def cpu_of(pid: int) -> float:
    """Seconds of CPU of a process and its children so far."""
    total = 0.0
    for one in (pid, *children(pid)):
        fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def send(port: int, clients: int, bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Send requests by so many clients; see clients.py."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("\n".join(map(json.dumps, bodies)))
        file.flush()
        script = str(Path(__file__).with_name("clients.py"))
        done = subprocess.run(
            [sys.executable, script, str(port), str(clients), file.name], check=True, stdout=subprocess.PIPE
        )
    found: dict[str, Any] = json.loads(done.stdout)
    if found["failed"]:
        raise SystemExit(f"{len(found['failed'])} requests failed: {found['failed'][0]}")
    return found


def lone(port: int, model: Embedder, count: int) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of a lone query by the server, by the library, and the first less the second, pair by pair."""
    body = json.dumps({"input": _QUERY, "task": "retrieval.query", "encoding_format": "base64"}).encode()
    raw = request(port, body)
    served, library = [], []
    client = Client(port)
    for n in range(count + 10):
        began = time.perf_counter()
        client.send(raw)
        while (answer := client.read()) is None:
            pass
        middle = time.perf_counter()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise SystemExit(answer.decode("latin-1"))
        model.encode([_QUERY], task="retrieval.query")
        if n >= 10:
            served.append(1000 * (middle - began))
            library.append(1000 * (time.perf_counter() - middle))
    client.socket.close()
    return served, library, [a - b for a, b in zip(served, library, strict=True)]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lone", type=int, default=300, metavar="QUERIES")
    parser.add_argument("--backend", default="auto", help="of our own; the rival runs the GGUF file (default: auto)")
    parser.add_argument("--rival-path", metavar="FOLDER", help="further packages for llama-cpp-python's server")
    args = parser.parse_args()
    with ExitStack() as stack:
        model = stack.enter_context(load("pico", backend=args.backend, isolate="process"))
        assert isinstance(model, Embedder)
        texts = texts_of(mix(args.texts), 0, _plain_words())
        tokens = sum(map(len, model.tokenize(texts, task="retrieval")))
        server = stack.enter_context(serving("--backend", args.backend))
        sides = {"jina_local": (server.port, server.process.pid, {"task": "retrieval.passage"}, "")}
        if args.rival_path or importlib.util.find_spec("starlette_context"):
            port, pid = stack.enter_context(rival(args.rival_path))
            sides["llama-cpp-python"] = (port, pid, {"model": "pico"}, "Document: ")
        else:
            print("llama-cpp-python[server] is not installed: it is left out", file=sys.stderr)
        served, library, more = lone(server.port, model, args.lone)
        found = measure(model, texts, tokens, sides, args.rounds)
    found["lone query"] = {
        "median ms": statistics.median(served),
        "library ms": statistics.median(library),
        "added ms": statistics.median(more),
    }
    print(f"a lone query: {found['lone query']}")
    print(json.dumps(found))


def measure(
    model: Embedder,
    texts: list[str],
    tokens: int,
    sides: dict[str, tuple[int, int, dict[str, str], str]],
    rounds: int,
) -> dict[str, Any]:
    """Rates, shares, CPU and latencies; the library and all servers take turns."""
    rates: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    late: dict[str, list[float]] = defaultdict(list)
    for n in range(rounds + 1):  # the first warms up
        part = texts if n else texts[:40]
        for what, (port, pid, words, prefix) in sides.items():
            for clients in _CLIENTS:
                _library(model, texts, tokens, rates, cpu, keep=n > 0)
                before = cpu_of(pid)
                done = send(port, clients, [{**words, "input": prefix + text} for text in part])
                if n:
                    name = f"{what}, {clients} clients"
                    rates[name].append(tokens / done["seconds"])
                    cpu[name].append(1000 * (cpu_of(pid) - before + done["cpu"]) / len(part))
                    late[name] += done["latencies"]
    found: dict[str, Any] = {}
    base, base_cpu = statistics.median(rates[_LIBRARY]), statistics.median(cpu[_LIBRARY])
    for name in rates:
        rate, used = statistics.median(rates[name]), statistics.median(cpu[name])
        found[name] = {"tokens per second": rate, "share": rate / base, "cpu ms": used, "cpu share": base_cpu / used}
        line = f"{name:30} {rate:8.0f} tokens/s, share {rate / base:.2f}; CPU {used:6.2f} ms a text, share "
        line += f"{base_cpu / used:.2f}"
        if name in late:
            middle, most = np.quantile(late[name], [0.5, 0.99])
            found[name] |= {"p50 ms": middle, "p99 ms": most}
            line += f"; p50 {middle:.0f} ms, p99 {most:.0f} ms"
        print(line)
    return found


def _library(
    model: Embedder, texts: list[str], tokens: int, rates: dict[str, list[float]], cpu: dict[str, list[float]],
    *, keep: bool,
) -> None:  # fmt: skip
    before, began = cpu_of(os.getpid()), time.perf_counter()
    model.encode(texts, task="retrieval.passage", show_progress=False)
    if keep:
        rates[_LIBRARY].append(tokens / (time.perf_counter() - began))
        cpu[_LIBRARY].append(1000 * (cpu_of(os.getpid()) - before) / len(texts))


def _plain_words() -> list[str]:
    readme = Path(__file__).resolve().parents[2] / "README.md"
    return sorted({word for word in readme.read_text(encoding="utf-8").split() if word.isalpha()})


if __name__ == "__main__":
    main()
