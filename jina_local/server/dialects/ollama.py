"""The API of Ollama: embeddings, and the models that it lists.

A request has no task, so the model's name says it: `pico:query` and `pico:document` for search, `pico:clustering` and
so on; `pico` and `pico:latest` have the default of /v1/embeddings. The list of models has all of these names, because
many programs only let their users choose from it. As in Ollama, /api/embed gives unit vectors and the older
/api/embeddings gives them as the model does, and a text that is too long is cut unless the request says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from .calls import EmbedCall, Embeddings, Fault, ModelInfo
from .fields import Fields

# Of `options`: how text is generated, and how the machine is used. No vector depends on any of them.
_NO_MATTER = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "tfs_z", "seed", "num_predict", "num_keep",
    "repeat_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau",
    "mirostat_eta", "penalize_newline", "stop", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "low_vram",
    "use_mmap", "use_mlock",
)  # fmt: skip
_LATEST = "latest"
_SEARCH = "retrieval"


@dataclass(frozen=True)
class Named:
    """A call, and the model's name as it was given, which the answer repeats."""

    name: str
    call: EmbedCall


def read_embed(body: object) -> Named:
    """POST /api/embed."""
    fields = Fields.of(body)
    name = fields.required("model")
    call = EmbedCall(
        model=_untagged(name),
        inputs=fields.texts("input"),
        dimensions=fields.whole("dimensions"),
        max_length=_options(fields),
        truncate=fields.flag("truncate", default=True),
    )
    fields.done()
    return Named(name, call)


def read_embeddings(body: object) -> EmbedCall:
    """POST /api/embeddings, which /api/embed has superseded."""
    fields = Fields.of(body)
    call = EmbedCall(
        model=_untagged(fields.required("model")),
        inputs=[fields.required("prompt")],
        max_length=_options(fields),
        normalize=False,
        truncate=True,
    )
    fields.done()
    return call


def read_show(body: object) -> str:
    """POST /api/show: the model's name."""
    fields = Fields.of(body)
    fields.flag("verbose", default=False)  # it lists a vocabulary, which is not listed here
    name = _untagged(fields.required("model", "name"))
    fields.done()
    return name


def _untagged(name: str) -> str:
    """The model's name in our own words: without the tag that Ollama gives to every name that has none."""
    return name.removesuffix(f":{_LATEST}")


def _options(fields: Fields) -> int | None:
    """The tokens that a text may have. Other options are taken if no vector depends on them."""
    fields.value("keep_alive", of=(str, float))
    options = fields.inner("options")
    options.ignore(*_NO_MATTER)
    length = options.whole("num_ctx")
    options.done()
    return length


def write_embed(name: str, reply: Embeddings, seconds: float) -> dict[str, Any]:
    """The answer; `truncated` is ours. No time goes into loading: the models are open from the start."""
    return {
        "model": name,
        "embeddings": reply.lists(),
        "total_duration": int(seconds * 1e9),
        "load_duration": 0,
        "prompt_eval_count": sum(reply.tokens),
        "truncated": list(reply.truncated),
    }


def write_embeddings(call: EmbedCall, reply: Embeddings) -> dict[str, Any]:
    """The answer; `truncated` is ours."""
    return {"embedding": reply.lists()[0], "truncated": list(reply.truncated)}


def write_tags(infos: Iterable[ModelInfo]) -> dict[str, Any]:
    """GET /api/tags: each embedding model under all names that it can be asked for."""
    return {
        "models": [
            {
                "name": f"{info.name}:{tag}",
                "model": f"{info.name}:{tag}",
                "modified_at": _time(info),
                "size": info.size,
                "digest": info.digest_of_all,
                "details": _details(info),
            }
            for info in infos
            if info.kind == "embedding"
            for tag in _tags(info.tasks)
        ]
    }


def write_show(info: ModelInfo) -> dict[str, Any]:
    """POST /api/show."""
    arch = info.architecture
    return {
        "license": info.license,
        "modelfile": "",
        "parameters": "",
        "template": "{{ .Prompt }}",
        "details": _details(info),
        "model_info": {
            "general.architecture": arch,
            "general.basename": info.name,
            f"{arch}.context_length": info.max_tokens,
            f"{arch}.embedding_length": max(info.dims, default=0),
        },
        "capabilities": ["embedding"] if info.kind == "embedding" else [],
        "modified_at": _time(info),
    }


def write_fault(fault: Fault) -> dict[str, Any]:
    """An error."""
    return {"error": fault.message}


def _tags(tasks: Sequence[str]) -> list[str]:
    """What may stand after a model's colon."""
    sides = ["query", "document"] if any(task.partition(".")[0] == _SEARCH for task in tasks) else []
    return [_LATEST, *sides, *(task for task in tasks if task.partition(".")[0] not in (_SEARCH, "none"))]


def _details(info: ModelInfo) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf" if info.form == "gguf" else "safetensors",
        "family": info.architecture,
        "families": [info.architecture],
        "parameter_size": "",
        "quantization_level": info.weights,
    }


def _time(info: ModelInfo) -> str:
    return datetime.fromtimestamp(int(info.modified), timezone.utc).isoformat().replace("+00:00", "Z")
