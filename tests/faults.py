"""Every fault at every step of a conversion: `python -m tests.faults [merge|mlx|onnx|gguf ...] [--every N] [--old]`.

A run is traced once to count its writes, syncs and renames. Then it is run again for each of them, and the call is
made to fail (disk full, input/output error) or the process is killed there, by strace's injection. If processes may
not be traced here, or with --layer python, Python's own calls fail instead (injected_io.py). Afterwards OUT is
absent, or it is complete, and a second run succeeds and leaves nothing of the first. With --old another conversion
stands in the place of OUT, to be replaced: afterwards that one or the new one is there, and complete.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from jina_local.formats import manifest

ROOT = Path(__file__).resolve().parents[1]
CONVERTERS = {"merge": (), "mlx": ("--bits", "8"), "onnx": ("--bits", "8"), "gguf": ("--type", "Q8_0")}
# What stands there before.
OTHERS = {"merge": ("--dtype", "F16"), "mlx": ("--bits", "16"), "onnx": ("--bits", "32"), "gguf": ("--type", "F16")}
FAILING = ("write", "pwrite64", "writev", "fsync", "fdatasync", "rename", "renameat", "renameat2", "ftruncate",
           "copy_file_range", "sendfile", "mkdir")  # fmt: skip
FAULTS = {"kill": "signal=KILL", "disk full": "error=ENOSPC", "I/O error": "error=EIO"}


@dataclass(frozen=True)
class Outcome:
    """One run with one fault."""

    step: str
    code: int
    left: str  # "absent" | "old" | "whole" | "HALF"
    problem: str | None


def available() -> str | None:
    """Why conversions cannot be traced here, or None."""
    if not shutil.which("strace"):
        return "strace is not installed"
    done = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False)
    return None if done.returncode == 0 else "this machine does not let a process trace its child"


def source(folder: Path) -> Path:
    """A checkpoint of one layer with one adapter."""
    from . import tiny

    size = {"hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
            "head_dim": 64, "intermediate_size": 256, "max_position_embeddings": 128}  # fmt: skip
    return tiny.write(folder, "nano", config=size, tasks=("retrieval",))


def convert(
    converter: str, src: Path, out: Path, *before: str, options: tuple[str, ...] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a converter; `before`: the command that runs it, Python itself by default."""
    options = CONVERTERS[converter] if options is None else options
    command = [converter, str(src), str(out), "--task", "retrieval", "--force", *options]
    command = [*(before or (sys.executable, "-m", "convert")), *command]
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(out.parent)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False, timeout=300)


def _traced(*options: str) -> tuple[str, ...]:
    return ("strace", "-f", "--seccomp-bpf", "-y", *options, sys.executable, "-m", "convert")


def _injected(fault: str, place: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "tests.injected_io", fault, str(place))


def steps(converter: str, src: Path, room: Path, layer: str, old: Path | None) -> list[tuple[str, int]]:
    """(call, its place among the calls of that name) for every call of an undisturbed run on a file under `room`."""
    if old:
        shutil.copytree(old, room / "counted")
    log = room / "log"
    before = _injected("kill", 0)
    if layer == "strace":
        before = _traced("-o", str(log), "-e", f"trace={','.join(FAILING)}")
    done = convert(converter, src, room / "counted", *before)
    if done.returncode:
        raise RuntimeError(f"{converter} fails undisturbed: {done.stderr}")
    if layer != "strace":
        return [("call", n + 1) for n in range(int(done.stderr.splitlines()[-1]))]
    seen: Counter[str] = Counter()
    found = []
    for line in log.read_text(errors="replace").splitlines():
        if match := re.match(r"\d+ +(\w+)\(", line):
            seen[match[1]] += 1
            if str(room) in line:
                found.append((match[1], seen[match[1]]))
    return found


def disturbed(
    converter: str, src: Path, room: Path, call: str, place: int, fault: str, layer: str, old: Path | None
) -> Outcome:
    """Run with one fault, look at what is left, and run once more without."""
    out = room / "out"
    shutil.rmtree(out, ignore_errors=True)
    if old:
        shutil.copytree(old, out)
    before = _injected(fault, place)
    if layer == "strace":
        inject = f"inject={call}:{FAULTS[fault]}:when={place}"
        before = _traced("-o", os.devnull, "-e", f"trace={call}", "-e", inject)
    done = convert(converter, src, out, *before)
    left = "absent" if not out.exists() else "HALF" if not _whole(out) else "whole"
    if old and left == "whole" and (out / manifest.NAME).read_bytes() == (old / manifest.NAME).read_bytes():
        left = "old"
    if old and left == "absent":
        left = "HALF"  # for a moment neither would be there
    problem = None
    if fault != "kill" and done.returncode not in (0, 73, 74):
        problem = f"exit code {done.returncode}: {done.stderr[-300:]}"
    elif fault != "kill" and "Traceback" in done.stderr:
        problem = f"a traceback: {done.stderr[-300:]}"
    elif done.returncode == 0 and left != "whole":
        problem = f"it says that it is done, and the output is {left}"
    again = convert(converter, src, out) if left in ("absent", "old") else None
    if again is not None and (again.returncode or not _whole(out)):
        problem = f"the run after it fails: {again.stderr[-300:]}"
    elif again is not None and (litter := [p.name for p in room.iterdir() if p.name.startswith(".")]):
        problem = f"the run after it leaves {litter}"
    return Outcome(f"{converter}: {fault} at {call} {place}", done.returncode, left, problem)


def _whole(out: Path) -> bool:
    try:
        return not manifest.verify(out)
    except Exception as error:  # any way of being unreadable is "not whole"
        print(f"{out}: {error}", file=sys.stderr)
        return False


def enumerate_faults(
    converter: str, every: int = 1, layer: str | None = None, *, replace: bool = False
) -> list[Outcome]:
    """All faults at each `every`-th step of a converter, each fault starting at another step.

    layer: "strace" or "python"; None takes strace if it works here. replace: another conversion stands at OUT.
    """
    layer = layer or ("python" if available() else "strace")
    with tempfile.TemporaryDirectory(prefix="jina_local-faults-") as name:
        room = Path(name)
        src = source(room / "src")
        old = room / "old" if replace else None
        if old and (done := convert(converter, src, old, options=OTHERS[converter])).returncode:
            raise RuntimeError(f"{converter} fails undisturbed: {done.stderr}")
        found = steps(converter, src, room, layer, old)
        return [
            disturbed(converter, src, room, call, place, fault, layer, old)
            for n, fault in enumerate(FAULTS)
            for call, place in found[n % every :: every]
        ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("converters", nargs="*", default=list(CONVERTERS), metavar="CONVERTER")
    parser.add_argument("--every", type=int, default=1, help="only each N-th step (default: all)")
    parser.add_argument("--old", action="store_true", help="another conversion stands at OUT")
    parser.add_argument("--layer", choices=("strace", "python"), help="default: strace if it works here")
    args = parser.parse_args()
    layer = args.layer or ("python" if available() else "strace")
    if layer == "strace" and (why := available()):
        parser.error(why)
    bad = 0
    for converter in args.converters:
        outcomes = enumerate_faults(converter, args.every, layer, replace=args.old)
        for one in outcomes:
            if one.problem or one.left == "HALF":
                print(f"{one.step}: {one.left}: {one.problem}", file=sys.stderr)
        half = sum(one.left == "HALF" for one in outcomes)
        problems = sum(one.problem is not None for one in outcomes)
        ends = ", ".join(f"{sum(one.left == end for one in outcomes)} {end}" for end in ("absent", "old", "whole"))
        counts = f"{len(outcomes)} faults, {half} half-written, {ends}, {problems} problems"
        print(f"{converter}, by {layer}: {counts}")
        bad += half + problems
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
