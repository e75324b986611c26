"""Other programs are opened as contenders, each as its users run it: llama-cpp-python, ONNX Runtime, transformers.

Each tokenises with its own means and is given the prompt that the model was trained with. Their texts run one by one,
or sorted by length in batches of 32, padded on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..backends.onnx import runtime
from ..errors import UsageError
from ..reranking import listwise, scoring
from ..spec import MARKS
from ..weights import projector
from ..weights.checkpoint import Checkpoint
from .ours import Opened

Ids = NDArray[np.int64]
_BATCH = 32
_CONTEXT = 512  # tokens; a longer text makes the context longer
# A checkpoint's names of XLM-RoBERTa -> those of transformers' class; Wqkv is queries, keys and values in one.
_XLM_ROBERTA = {
    "encoder.layers.": "encoder.layer.",
    "emb_ln": "embeddings.LayerNorm",
    "mixer.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm2": "output.LayerNorm",
}


def llama(path: str, weights: str, prefix: str, threads: int | None) -> Opened:
    """llama-cpp-python's own `Llama.embed` on a GGUF file, one text at a time."""
    import llama_cpp

    from ..backends.llama.library import library
    from ..backends.llama.repack import use_extra_buffers

    api: Any = llama_cpp.llama_cpp
    lib = library()
    if lib.has("AMX_INT8") and not use_extra_buffers(lib, Path(path), weights)[0]:
        defaults = api.llama_model_default_params

        def params() -> Any:  # its own default would end the process here
            given = defaults()
            given.use_extra_bufts = False
            return given

        vars(llama_cpp)["llama_model_default_params"] = api.llama_model_default_params = params
    opened: dict[int, Any] = {}

    def model_of(tokens: int) -> Any:
        """One whose context has room for that many tokens; it cuts a text that is longer."""
        context = max(_CONTEXT, tokens)
        if context not in opened:
            opened.clear()
            opened[context] = llama_cpp.Llama(
                path, embedding=True, n_ctx=context, n_batch=context, n_ubatch=context, verbose=False,
                n_threads=threads, n_threads_batch=threads,
            )  # fmt: skip
        return opened[context]

    model_of(_CONTEXT)

    def run(texts: list[str]) -> NDArray[Any]:
        # A word of the texts is one token; what stands around them is much less than this.
        model = model_of(max(len(text.split()) for text in texts) + 64)
        return np.array([model.embed(prefix + text) for text in texts])

    return Opened(run, {"device": "cpu"})


def onnxruntime(path: str, tokenizer: str, prefix: str, pooling: str, threads: int | None) -> Opened:
    """A graph of the published layout: ids and mask in, states or vectors out."""
    engine = runtime()
    options = engine.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = engine.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wanted = {one.name for one in session.get_inputs()}
    if wanted != {"input_ids", "attention_mask"}:
        raise UsageError(f"{path}: takes {', '.join(sorted(wanted))}; expected input_ids and attention_mask alone.")

    def states(ids: Ids, mask: Ids) -> NDArray[Any]:
        return np.asarray(session.run(None, {"input_ids": ids, "attention_mask": mask})[0])

    return Opened(_embedding(tokenizer, prefix, pooling, states), {"device": "cpu"})


def transformers(
    folder: str,
    task: str | None,
    dtype: str,
    prefix: str,
    pooling: str,
    query: str | None,
    threads: int | None,
) -> Opened:
    """transformers' own class on the tensors of a published checkpoint, its adapter merged; on Metal if there is any.

    The checkpoint's code is not run. Raises UsageError for an architecture that has no class here.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    device = "mps" if torch.backends.mps.is_available() else "cpu"
    model = torch_model(Path(folder), task).to(device, getattr(torch, dtype))
    about: dict[str, str | int] = {"device": device, "dtype": dtype, "threads": torch.get_num_threads()}

    def outputs(ids: Ids, mask: Ids) -> Any:
        with torch.inference_mode():
            return model(input_ids=torch.from_numpy(ids).to(device), attention_mask=torch.from_numpy(mask).to(device))

    def states(ids: Ids, mask: Ids) -> NDArray[Any]:
        return np.asarray(outputs(ids, mask).last_hidden_state.float().cpu().numpy())

    file = str(Path(folder) / "tokenizer.json")
    if query is None:
        return Opened(_embedding(file, prefix, pooling, states), about)
    if pooling == "marked":
        return Opened(_listwise(Path(folder), file, query, states), about)
    return Opened(
        _pairwise(file, query, lambda ids, mask: outputs(ids, mask).logits.float().cpu().numpy()[:, 0]), about
    )


def torch_model(folder: Path, task: str | None) -> Any:
    """transformers' class with the tensors of a published checkpoint, `task` merged, in float32 on the CPU."""
    import torch
    import transformers as library

    classes = {
        "qwen3": (library.Qwen3Config, library.Qwen3Model),
        "eurobert": (library.EuroBertConfig, library.EuroBertModel),
        "bert": (library.XLMRobertaConfig, library.XLMRobertaForSequenceClassification),
    }
    with Checkpoint(folder) as checkpoint:
        kind, config = checkpoint.arch.kind, checkpoint.config
        if kind not in classes:
            raise UsageError(f"{folder}: {kind} is not run beside; transformers has {', '.join(classes)} here.")
        make_config, make = classes[kind]
        known = {name: value for name, value in config.items() if name in _CONFIG and value is not None}
        model = make(make_config(**known))
        state = {_name(kind, name): torch.from_numpy(np.array(value)) for name, value in checkpoint.merged(task)}
    if kind == "bert":
        state = dict(_parted(state))
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or [name for name in missing if "rotary" not in name]:
        raise UsageError(f"{folder}: transformers' class has no place for {unexpected}, or lacks {missing}.")
    return model.eval()


_CONFIG = frozenset(
    {
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
        "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "hidden_act",
        "attention_bias", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "layer_norm_eps",
        "type_vocab_size", "num_labels",
    }
)  # fmt: skip


def _name(kind: str, name: str) -> str:
    if kind != "bert":
        return name
    for ours, theirs in _XLM_ROBERTA.items():
        name = name.replace(ours, theirs)
    return name if name.startswith("classifier.") else f"roberta.{name}"


def _parted(state: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Queries, keys and values as three tensors."""
    for name, tensor in state.items():
        if "mixer.Wqkv" not in name:
            yield name, tensor
            continue
        for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            yield name.replace("mixer.Wqkv", f"attention.self.{part}"), rows


def _embedding(
    tokenizer: str, prefix: str, pooling: str, states: Callable[[Ids, Ids], NDArray[Any]]
) -> Callable[[list[str]], NDArray[Any]]:
    tokens = _tokenizer(tokenizer)

    def run(texts: list[str]) -> NDArray[Any]:
        rows = [one.ids for one in tokens.encode_batch([prefix + text for text in texts])]
        out: list[Any] = [None] * len(rows)
        for group, ids, mask in _batches(rows):
            found = states(ids, mask)
            if found.ndim == 3:
                found = _pooled(found, mask, pooling)
            for i, vector in zip(group, found / np.linalg.norm(found, axis=1, keepdims=True), strict=True):
                out[i] = vector
        return np.array(out)

    return run


def _pooled(states: NDArray[Any], mask: Ids, pooling: str) -> NDArray[Any]:
    if pooling == "mean":
        return np.asarray((states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True))
    return np.asarray(states[np.arange(len(states)), mask.sum(axis=1) - 1])


def _pairwise(
    tokenizer: str, query: str, logits: Callable[[Ids, Ids], NDArray[Any]]
) -> Callable[[list[str]], NDArray[Any]]:
    tokens = _tokenizer(tokenizer)

    def run(texts: list[str]) -> NDArray[Any]:
        rows = [one.ids for one in tokens.encode_batch([(query, text) for text in texts])]
        out = np.empty(len(rows))
        for group, ids, mask in _batches(rows):
            out[group] = scoring.sigmoid(logits(np.where(mask, ids, 1), mask))  # 1 pads XLM-RoBERTa
        return out

    return run


def _listwise(
    folder: Path, tokenizer: str, query: str, states: Callable[[Ids, Ids], NDArray[Any]]
) -> Callable[[list[str]], NDArray[Any]]:
    tokens = _tokenizer(tokenizer)
    marks = [tokens.token_to_id(mark) for mark in MARKS]
    with Checkpoint(folder) as checkpoint:
        project = projector.read(folder, checkpoint.arch.hidden)

    def run(texts: list[str]) -> NDArray[Any]:
        ids = np.array([tokens.encode(listwise.prompt(query, texts), add_special_tokens=False).ids])
        found = project(states(ids, np.ones_like(ids))[0, np.isin(ids[0], marks)])
        return scoring.cosines(found[-1], found[:-1])

    return run


def _tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(path)


def _batches(rows: list[list[int]]) -> Iterator[tuple[list[int], Ids, Ids]]:
    """(places in `rows`, ids, mask), sorted by length, in batches of 32 with zeros on the right."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), _BATCH):
        group = order[start : start + _BATCH]
        longest = max(len(rows[i]) for i in group)
        ids = np.array([rows[i] + [0] * (longest - len(rows[i])) for i in group], np.int64)
        mask = np.array([[1] * len(rows[i]) + [0] * (longest - len(rows[i])) for i in group], np.int64)
        yield group, ids, mask
