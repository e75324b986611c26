"""What commands share of their options: the parser, which model is loaded, where texts come from."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from .. import arguments, backends, console, registry
from ..errors import UsageError
from ..records import output, source
from ..records.readers import FORMATS, Item, Reading
from ..records.source import Source
from ..spec import ModelSpec

if TYPE_CHECKING:
    from .. import Embedder, Reranker
    from ..server.client import Server


class Parser(arguments.Parser):
    """The parser of a command, which may take texts as arguments."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(prog=prog, description=description, epilog=epilog)

    def parse_intermixed_args(  # type: ignore[override]
        self, args: Any = None, namespace: Any = None
    ) -> argparse.Namespace:
        """The options in `args`; texts may stand before, between and after them."""
        parsed: argparse.Namespace
        parsed, unknown = self.parse_known_intermixed_args(args, namespace)
        if unknown:
            self.refuse(
                unknown[0], " (a text that begins with a dash goes after --)" if hasattr(parsed, "texts") else ""
            )
        return parsed


def add_model(p: argparse.ArgumentParser, default: str) -> None:
    """Add the group "model"; `default` is the model that is loaded if none is named."""
    g = p.add_argument_group("model")
    g.add_argument("--model", metavar="NAME", help=f"name, folder or .gguf file (default: {default})")
    g.add_argument("--weights", metavar="LABEL", help="for example Q8_0 or 8bit (default: the best there is)")
    g.add_argument("--backend", choices=("auto", *backends.BACKENDS), help="engine (default: auto)")
    g.add_argument("--device", choices=("cpu", "metal"), help="default: the engine's best")
    g.add_argument("--threads", type=int, metavar="N", help="default: the physical cores")
    g.add_argument("--offline", action="store_true", help="open no socket, even if the model is not here")


def add_server(p: argparse.ArgumentParser) -> None:
    """Add the group of a running server, which takes the place of a model that is loaded."""
    g = p.add_argument_group("a running server", "In place of a model loaded here: `jina-local serve` has it open.")
    g.add_argument("--server", metavar="URL", help="http://HOST:PORT, or unix:PATH (default: JINA_LOCAL_SERVER)")
    g.add_argument("--api-key-file", metavar="FILE", help="its key (default: JINA_LOCAL_API_KEY)")


LOADED_HERE = ("weights", "backend", "device", "threads", "offline", "deterministic")


def server(args: argparse.Namespace, here: Sequence[str] = LOADED_HERE) -> Server | None:
    """The server that is to answer, if any. Raises UsageError for the options of `here`, which load a model here."""
    address = setting(args.server, "SERVER")
    if address is None:
        if args.api_key_file is not None:
            raise UsageError("--api-key-file is for a server: give --server too, or set JINA_LOCAL_SERVER.")
        return None
    for name in here:
        if getattr(args, name) not in (None, False):
            raise UsageError(
                f"--{name.replace('_', '-')} is for a model that is loaded here, and the server at {address} has its "
                "models open. Leave it out, or leave out --server and JINA_LOCAL_SERVER."
            )
    from ..server.client import Server

    keys = api_keys(args.api_key_file) if args.api_key_file is not None else own_key()
    return Server(str(address), keys[0] if keys else None)


def own_key() -> tuple[str, ...] | None:
    """The key of JINA_LOCAL_API_KEY, if it is set; as an option it would be seen by all users of the machine."""
    key = os.environ.get("JINA_LOCAL_API_KEY")
    return (key,) if key else None


def api_keys(path: str) -> tuple[str, ...]:
    """The keys of a file, a key a line. Raises UsageError if there is none."""
    lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise UsageError(f"{path}: has no key; expected one a line.")
    return keys


def open_model(settings: dict[str, Any], server: Server | None, of_model: str = "") -> Embedder | Reranker:
    """The model that `settings` name: loaded here, or the server's. of_model: see `settings`."""
    if server is None:
        from .. import loading

        model: Embedder | Reranker = loading.load(**settings)
        return model
    asked = settings["name_or_path"]
    if os.sep in asked or asked.endswith(".gguf"):
        raise UsageError(f"{asked}: is a path, and a server knows its models by their names.")
    name, _, label = asked.partition(":")
    remote = server.model(name)
    wanted = [(f"--model {asked}", "weights", label)]
    for word, variable in (("weights", f"{of_model}WEIGHTS"), ("backend", "BACKEND"), ("device", "DEVICE")):
        value = os.environ.get(f"JINA_LOCAL_{variable}", "")
        wanted.append((f"JINA_LOCAL_{variable}={value}", word, value))
    for said, word, value in wanted:
        if value not in ("", "auto") and value.casefold() != remote.runs_as[word].casefold():
            raise UsageError(
                f"{said}: the server at {server.address} runs {name} with {word} {remote.runs_as[word]}. Ask for no "
                "other, or start a server with it."
            )
    return cast("Embedder", remote)  # it has the methods that commands use


_RANKED = {".json": "json", ".jsonl": "jsonl", ".txt": "table"}
_FORMATS = """.txt one text a line, empty lines included; .md one a paragraph; .jsonl a
string or an object a line; .json a list of such; .csv and .tsv with a header;
.parquet a column. Standard input is txt, or jsonl if a field is named."""


def add_input(p: argparse.ArgumentParser, texts: str, more: str = "") -> None:
    """Add the group "input"; `texts` is the command's word for them, `more` a sentence about them."""
    g = p.add_argument_group("input", _FORMATS + more)
    g.add_argument(
        "--input", action="append", metavar="FILE", help=f"read {texts} from a file, or stdin for -; may be repeated"
    )
    g.add_argument("--input-format", choices=FORMATS, metavar="FORMAT", help=f"one of {', '.join(FORMATS)}")
    g.add_argument("--field", metavar="NAME", help="key or column of the text (default: text); not for txt and md")
    g.add_argument(
        "--errors", choices=("fail", "skip"), default="fail", help="at a bad row: end (default), or go on without it"
    )


def add_output(p: argparse.ArgumentParser, names: Sequence[str], formats: str) -> Any:
    """Add the group "output", described by `formats`, with the formats' names; return it."""
    g = p.add_argument_group("output", formats)
    g.add_argument("--output", metavar="FILE", help="in place of standard output")
    g.add_argument("--format", choices=names, metavar="FORMAT", help=f"one of {', '.join(names)}")
    g.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="a bar on stderr (default: on a terminal)",
    )
    return g


def settings(args: argparse.Namespace, default: str, of_model: str = "") -> dict[str, Any]:
    """The arguments of `load`: an option, else its environment variable, else the default.

    of_model: a part of the names of the two variables that choose the model, so that a model that was set for one
    command is not tried by another. Engine and machine are the same for every command.
    """
    backend = setting(args.backend, "BACKEND") or "auto"
    if backend not in ("auto", *backends.BACKENDS):
        raise UsageError(f"JINA_LOCAL_BACKEND is {backend!r}. Possible: auto, {', '.join(backends.BACKENDS)}.")
    threads = setting(args.threads, "THREADS")
    if isinstance(threads, str) and not threads.isdecimal():
        raise UsageError(f"JINA_LOCAL_THREADS is {threads!r}; expected a whole number from 1.")
    return {
        "name_or_path": setting(args.model, f"{of_model}MODEL") or default,
        "backend": backend,
        "weights": setting(args.weights, f"{of_model}WEIGHTS"),
        "device": setting(args.device, "DEVICE"),
        "threads": None if threads is None else int(threads),
        "offline": True if args.offline else None,
        "show_progress": args.progress,
    }


def known_model(name: str) -> ModelSpec | None:
    """The facts of a model that is named; None for a path, and for a name of which `load` says what is wrong."""
    if os.path.lexists(name):
        return None
    try:
        return registry.lookup(name.partition(":")[0]).spec
    except UsageError:
        return None


def open_source(
    args: argparse.Namespace, texts: Sequence[str], reading: Reading, examples: str, what: str = "texts"
) -> Source:
    """The texts given, else those of --input, else those of standard input. Raises UsageError if there are none.

    what: the command's word for its texts.
    """
    if texts:
        if args.input is not None:
            files = [text for text in texts if os.path.isfile(text)]
            several = f" Several files: --input {args.input[0]} --input {files[0]}." if files else ""
            raise UsageError(f"{what} were given, and --input too: give one of them.{several}")
        for option in ("input_format", "field"):
            if getattr(args, option) is not None:
                name = option.replace("_", "-")
                raise UsageError(f"--{name} says how to read --input or stdin, and {what} were given instead.")
        _hint_at_input(texts)
        return source.arguments(texts, records=reading.records)
    if args.input is None and sys.stdin is not None and sys.stdin.isatty():
        raise UsageError(f"no {what}: give some, or --input FILE, or pipe them in.\n\n{examples.rstrip()}")
    return source.open_inputs(args.input or ["-"], reading)


def counted(
    what: str, total: int, source: Source, cases: Iterable[tuple[int, Item | None, tuple[str, str], str]]
) -> list[str]:
    """Sentences such as "2 of 9 texts were cut (first: line 4)". A case: count, first item, verbs, the rest."""
    sentences = []
    for count, first, verbs, rest in cases:
        if first is not None:
            where = source.where(first) + (f": {first.fault}" if first.fault is not None else "")
            sentences.append(f"{count} of {total} {what} {verbs[count > 1]} {rest} (first: {where})")
    return sentences


def ranked_format(args: argparse.Namespace, stdout: BinaryIO) -> str:
    """The format of ranked results: as asked, else by the suffix, else a table for people and jsonl for pipes."""
    if args.format is not None:
        return str(args.format)
    if output.is_file(args.output):
        return output.by_suffix("--output", args.output, _RANKED, "--format")
    return "table" if on_terminal(args, stdout) else "jsonl"


def on_terminal(args: argparse.Namespace, stdout: BinaryIO) -> bool:
    """Whether the output is shown to a person."""
    return output.is_stdout(args.output) and stdout.isatty()


@contextmanager
def telling_what_is_left(path: str | None, more: str = "") -> Iterator[None]:
    """If the block is stopped by a signal, say what it has left at the --output, and `more`."""
    try:
        yield
    except BaseException as error:
        left = output.left_by_a_stop(path)
        if console.is_stop(error) and left is not None:
            console.say(left + more)
        raise


def _hint_at_input(texts: Sequence[str]) -> None:
    for text in texts:
        if text == "-" or os.path.isfile(text):
            what = "standard input" if text == "-" else "the file"
            console.say(f"{text} is taken as a text. To read {what}: --input {text}")
            return


def setting(option: Any, name: str) -> Any:
    """An option, else its environment variable; None if neither is given."""
    return option if option is not None else os.environ.get(f"JINA_LOCAL_{name}") or None
