"""`python -m convert merge|mlx|onnx|gguf|verify`: from a published checkpoint to the files that jina_local runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jina_local import arguments, console, registry
from jina_local.errors import UsageError
from jina_local.weights.checkpoint import Checkpoint

Progress = Callable[[str, int, int], None]

_EXAMPLES = """examples:
  python -m convert gguf jinaai/jina-embeddings-v5-text-nano out --task retrieval --type Q8_0 --type Q4_K_M
  python -m convert gguf ./jina-embeddings-v5-text-nano out --task all --type Q4_K_M --imatrix my-texts.txt
  python -m convert mlx ./jina-embeddings-v5-text-small out --task retrieval --bits 8
  python -m convert mlx ./jina-embeddings-v5-text-small out --adapters separate --bits 8
  python -m convert onnx ./jina-embeddings-v5-text-nano out --task all --bits 8
  python -m convert merge ./jina-embeddings-v5-text-small out --task classification
  python -m convert gguf ./jina-embeddings-v3 out --task retrieval --type Q8_0     # retrieval.query and .passage
  python -m convert gguf ./jina-embeddings-v3 out --task none --type F16           # the base, without any adapter
  python -m convert gguf jinaai/jina-reranker-v3 out --type Q8_0
  python -m convert mlx ./jina-reranker-v2-base-multilingual out --bits 16
  python -m convert verify out --against ./jina-embeddings-v5-text-small

SRC is a checkpoint folder (config.json, safetensors, adapters/) or a name, as `python -m jina_local models list`
prints it; a name is looked for in the Hugging Face cache and fetched, unless --offline is given.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, call, return the exit code."""
    args = _parser().parse_args(argv)
    return int(args.run(args))


class _Parser(arguments.Parser):
    def __init__(self, **words: Any) -> None:
        super().__init__(epilog=_EXAMPLES, **words)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The parsed arguments. Raises UsageError."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parsed.parser.refuse(unknown[0])
        return parsed


def _parser() -> _Parser:
    parser = _Parser(
        prog="python -m convert",
        description="Turn a published checkpoint into the files that jina_local runs.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    merge = commands.add_parser("merge", help="merge the adapters; a plain checkpoint for any loader")
    _common(merge, "one folder, or one below it for each task")
    merge.add_argument("--task", help="a task, or all; a model with one task needs none")
    merge.add_argument("--dtype", choices=("F32", "F16", "BF16"), help="default: the source's")
    merge.set_defaults(run=_merge, parser=merge)

    mlx = commands.add_parser("mlx", help="MLX weights")
    _common(mlx, "one folder, or one below it for each task; with separate adapters always one")
    _adapters(mlx)
    mlx.add_argument("--bits", type=int, choices=(4, 5, 6, 8, 16, 32), default=8, help="default: 8")
    mlx.add_argument(
        "--group-size", type=int, choices=(32, 64, 128), help="weights a scale (default: 32 for 4 bits, else 64)"
    )
    mlx.set_defaults(run=_mlx, parser=mlx)

    onnx = commands.add_parser("onnx", help="weights for ONNX Runtime")
    _common(onnx, "one folder, or one below it for each task; with separate adapters always one")
    _adapters(onnx)
    onnx.add_argument(
        "--bits", type=int, choices=(4, 8, 16, 32), default=8, help="4, 8 and 16: whole numbers (default: 8); 32: F32"
    )
    onnx.set_defaults(run=_onnx, parser=onnx)

    _add_gguf(commands)
    _add_verify(commands)
    return parser


def _add_gguf(commands: Any) -> None:
    gguf = commands.add_parser("gguf", help="GGUF files for llama.cpp")
    _common(gguf, "a folder for all files")
    _adapters(gguf)
    gguf.add_argument(
        "--type",
        action="append",
        metavar="TYPE",
        help="F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q4_K_M Q4_0 IQ4_NL ...; may be given several times (default: as "
        "`doctor` says, Q6_K on x86, Q8_0 elsewhere and for jina-reranker-v2)",
    )
    gguf.add_argument(
        "--imatrix",
        type=Path,
        metavar="TEXTS",
        help="a text file, one text a line: weigh the rounding by what these texts use",
    )
    gguf.add_argument("--threads", type=int)
    gguf.set_defaults(run=_gguf, parser=gguf)


def _add_verify(commands: Any) -> None:
    verify = commands.add_parser("verify", help="compare converted files with their source")
    verify.add_argument("out", type=Path, help="a converted folder or a .gguf file")
    verify.add_argument("--against", required=True, metavar="SRC", help="the checkpoint it was made from")
    verify.add_argument("--weights", help="which of several, as Q4_K_M")
    verify.add_argument("--backend", choices=("auto", "mlx", "llama", "onnx"), default="auto")
    _hub(verify)
    verify.set_defaults(run=_verify, parser=verify)


def _common(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("source", metavar="SRC", help="a checkpoint folder or a model's name")
    parser.add_argument("out", type=Path, metavar="OUT", help=out)
    parser.add_argument("--force", action="store_true", help="replace OUT if this program wrote it")
    _hub(parser)


def _adapters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        help="a task, or all (of jina-embeddings-v3 all but `none`); not needed for a reranker, nor with --adapters "
        "separate, which writes all where none is named",
    )
    parser.add_argument(
        "--adapters",
        choices=("merged", "separate"),
        default="merged",
        help="merged (default): whole weights for each task, nothing to pay per token; right for one task, and the "
        "only form that other programs read without knowing of tasks. separate: one base and a small file for each "
        "task, in the disk and memory of little more than one; right where one process serves several tasks, at a "
        "cost in time for each token",
    )


def _hub(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--revision", help="a commit of the hub repository instead of the pinned one")
    parser.add_argument("--offline", action="store_true", default=None, help="never open a socket")
    parser.add_argument("--progress", action=argparse.BooleanOptionalAction, help="default: on a terminal")


def _merge(args: argparse.Namespace) -> int:
    from .merge import merge

    return _convert(args, merge, lambda _: {"dtype": args.dtype})


def _mlx(args: argparse.Namespace) -> int:
    from .mlx.folders import to_mlx

    return _convert(args, to_mlx, lambda _: {**_separate(args), "bits": args.bits, "group_size": args.group_size})


def _onnx(args: argparse.Namespace) -> int:
    from .onnx.folders import to_onnx

    return _convert(args, to_onnx, lambda _: {**_separate(args), "bits": args.bits})


def _gguf(args: argparse.Namespace) -> int:
    from .gguf.files import to_gguf

    def own(folder: Path) -> dict[str, Any]:
        types = args.type or [_default_type(folder)]
        return {**_separate(args), "types": types, "imatrix": args.imatrix, "threads": args.threads}

    return _convert(args, to_gguf, own)


def _convert(args: argparse.Namespace, write: Callable[..., None], own: Callable[[Path], Mapping[str, Any]]) -> int:
    """Run a converter with the words that all of them take, and its own for the checkpoint's folder."""
    folder, name, revision, tasks = _open(args)
    with _progress(args.progress) as progress:
        write(
            folder,
            args.out,
            tasks=tasks,
            force=args.force,
            source_name=name,
            revision=revision,
            progress=progress,
            **own(folder),
        )
    return _done(args, tasks)


def _separate(args: argparse.Namespace) -> dict[str, Any]:
    return {"separate": args.adapters == "separate"}


def _default_type(folder: Path) -> str:
    """The type that is fast and nearly lossless on this machine."""
    from jina_local.store import default_weights

    from . import source

    with Checkpoint(folder) as checkpoint:
        default = default_weights.of(source.row_of(checkpoint).spec)
    console.say(f"{default.label} weights, because {default.why}; --type takes others")
    return default.label


def _verify(args: argparse.Namespace) -> int:
    from . import source
    from .verify.verify import verify

    folder, _, _ = source.locate(args.against, revision=args.revision, offline=args.offline)
    with console.quiet_stdout() as stdout:
        with _progress(args.progress) as progress:
            found, findings = verify(args.out, folder, backend=args.backend, label=args.weights, progress=progress)
        lines = [f"{found.model.name} {found.label} ({found.backend}) against {args.against}"]
        rows = [(f.task, f.step, f.measured, f.asked, "ok" if f.ok else "NOT OK") for f in findings]
        widths = [max(len(row[i]) for row in rows) for i in range(5)]
        lines += ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        good = all(f.ok for f in findings)
        lines.append("all as they should be" if good else "these files do not give the vectors of their source")
        stdout.write(("\n".join(lines) + "\n").encode())
    return console.OK if good else console.DAMAGED


def _open(args: argparse.Namespace) -> tuple[Path, str, str | None, list[str]]:
    from . import source

    separate = getattr(args, "adapters", "merged") == "separate"
    asked = separate or args.task is not None
    if not asked and not args.source.startswith((".", "/", "~")) and not Path(args.source).exists():
        _require_task(args, registry.lookup(args.source))  # before anything is fetched
    folder, name, revision = source.locate(args.source, revision=args.revision, offline=args.offline)
    with Checkpoint(folder) as checkpoint:
        if not asked:
            _require_task(args, source.row_of(checkpoint))
        tasks = source.choose_tasks(checkpoint, [args.task or "all"])
        dropped = checkpoint.dropped
    for tensor, why in dropped.items():
        console.say(f"not carried over: {tensor} ({why})")
    return folder, name, revision, tasks


def _require_task(args: argparse.Namespace, row: registry.Published) -> None:
    """Raise UsageError where the model has several tasks, of which one has to be said."""
    if len(row.spec.tasks) > 1:
        apart = " With --adapters separate it may be left out." if hasattr(args, "adapters") else ""
        raise UsageError(
            f"--task is required: give a task, or all.{apart} {row.spec.name} has: {', '.join(row.spec.tasks)}."
        )


def _done(args: argparse.Namespace, tasks: Sequence[str]) -> int:
    console.say(f"wrote {args.out} ({', '.join(tasks)})")
    console.say(f"check it: python -m convert verify {args.out} --against {args.source}")
    return console.OK


@contextmanager
def _progress(enabled: bool | None) -> Iterator[Progress]:
    """One bar for each stage that the converter names."""
    stage: str | None = None
    bar: console.Progress | None = None
    at = 0

    def advance(name: str, done: int, total: int) -> None:
        nonlocal stage, bar, at
        if bar is None or name != stage:
            if bar:
                bar.close()
            stage, bar, at = name, console.progress(total, "steps", enabled, name), 0
        bar.update(done - at)
        at = done

    try:
        yield advance
    finally:
        if bar:
            bar.close()


if __name__ == "__main__":
    console.run(main)
