"""The graph of a repository that Jina publishes for one task (onnx/model.onnx) -> the model in it."""

from __future__ import annotations

from pathlib import Path

from .. import registry
from ..errors import UsageError
from ..registry import Published
from ..spec import ModelFiles
from ..weights import onnx_graph
from . import beside, published
from .request import Request, require_reader, require_tasks

FORM = "graph"


def is_there(folder: Path) -> bool:
    """Whether the graph is to be run: a checkpoint beside it comes first, unless its task is not known."""
    return onnx_graph.folder_of(folder) is not None and not published.says_tasks(folder)


def read(path: Path, request: Request) -> ModelFiles:
    """The files of a graph, judged. Raises UsageError, ModelDamaged."""
    engine = require_reader(request, FORM, f"{path} has a published ONNX graph")
    folder = onnx_graph.folder_of(path) or path
    graph = onnx_graph.read(folder)
    arch = graph.arch
    row = registry.identify(architecture=arch.kind, rope_theta=arch.rope_theta, where=str(folder))
    if row.spec.pooling != "last":
        raise UsageError(f"{folder}: no graph of {row.spec.name} is run here: open its checkpoint instead.")
    length = f"{folder}: max_position_embeddings"
    registry.check_length(row, hidden=arch.hidden, max_positions=arch.max_positions, where=length)
    if request.label and request.label.casefold() != graph.label.casefold():
        raise UsageError(f"{graph.file.path}: its weights are {graph.label}, not {request.label!r}.")
    task = _task(row, folder, request)
    require_tasks(request, row, [task], folder)
    return ModelFiles(
        model=registry.narrow(row, hidden=arch.hidden, max_positions=arch.max_positions, tasks=[task]),
        form=FORM,
        files={task: folder},
        label=graph.label,
        tokenizer=beside.required_tokenizer(onnx_graph.beside(folder, "tokenizer.json").parent),
        revision=None,
        reasons=(*request.reasons, f"{engine}, because {folder} has a published ONNX graph"),
        engine=engine,
    )


def _task(row: Published, folder: Path, request: Request) -> str:
    """The task whose repository the folder is, by its name there or in the hub's cache; else the one asked for."""
    home = folder.absolute()
    home = home.parent if home.name == "onnx" else home
    name = home.parent.parent.name if home.parent.name == "snapshots" else home.name
    repos = {task: row.merged_repo.format(task=task) for task in row.spec.tasks if row.merged_repo}
    known = [
        task for task, repo in repos.items() if name in (repo.split("/")[-1], f"models--{repo.replace('/', '--')}")
    ]
    asked = known or registry.tasks_for(row, request.tasks)
    if len(asked) != 1:
        such = f", such as {next(iter(repos.values())).split('/')[-1]}" if repos else ""
        raise UsageError(
            f"{folder}: nothing says which task this graph was published for. Give task=, one of "
            f"{', '.join(row.spec.tasks)}, or let the folder have the name of its repository{such}."
        )
    return asked[0]
