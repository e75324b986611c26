"""The importance matrix: the true mean squares of the inputs, and files that weigh their errors by them."""

from __future__ import annotations

import numpy as np
import pytest

from convert.gguf import engine, imatrix
from convert.gguf.files import FILE_TYPES, to_gguf
from convert.source import narrowed
from convert.verify import reference
from jina_local.errors import EngineError, UsageError
from jina_local.formats.gguf import read_header
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights import architecture, tensor_names
from jina_local.weights.checkpoint import Checkpoint

from .. import tiny

gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'jina_local[convert]'")
pytestmark = pytest.mark.llama

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "x",
    "naïve café Ångström – Größe, straße; 日本語のテキスト " * 3,
]


@pytest.fixture(scope="module", params=["small", "nano"])
def model(request, tmp_path_factory):
    """(kind, checkpoint folder, F32 file)."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    tiny.write(folder / "source", kind, tasks=("retrieval",))
    to_gguf(folder / "source", folder / "out", tasks=["retrieval"], types=["F32"])
    return kind, folder / "source", folder / "out" / f"v5-{kind}-retrieval-F32.gguf"


def ids_of(source, texts=TEXTS):
    with Checkpoint(source) as checkpoint:
        spec = narrowed(checkpoint, ["retrieval"])
    return imatrix.encode(list(texts), Tokenizer.from_file(source / "tokenizer.json"), spec, "retrieval")


def true_inputs(source, ids) -> dict[str, np.ndarray]:
    """Weight name -> (tokens, columns): what enters each linear layer, in numpy, for one text.

    The reference computes `rows @ weight.T`; a weight that notes down the rows is given to it.
    """
    with Checkpoint(source) as checkpoint:
        arch, weights = checkpoint.arch, dict(checkpoint.merged("retrieval"))
    seen: dict[str, np.ndarray] = {}

    class Noting(np.ndarray):
        def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
            if ufunc is np.matmul:
                seen[self.name] = np.asarray(inputs[0])
            plain = [np.asarray(x) if isinstance(x, Noting) else x for x in inputs]
            return getattr(ufunc, method)(*plain, **kwargs)

        def __array_finalize__(self, parent):
            self.name = getattr(parent, "name", "")

    for name in architecture.projections(arch):
        weights[name] = weights[name].view(Noting)
        weights[name].name = tensor_names.gguf_names(arch)[name]
    reference.hidden_states(arch, weights, ids)
    return seen


def test_the_means_are_those_of_the_true_inputs(model):
    _, source, path = model
    ids = ids_of(source)
    found = imatrix.collect(path, ids, threads=1)
    sums: dict[str, np.ndarray] = {}
    for text in ids:
        for name, rows in true_inputs(source, text).items():
            sums[name] = sums.get(name, 0) + (rows.astype(np.float64) ** 2).sum(0)
    assert found.keys() == sums.keys()
    assert len(found) == 2 * 7
    tokens = sum(map(len, ids))
    for name, values in found.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, sums[name] / tokens, rtol=5e-3, err_msg=name)
    # Before the first attention nothing is rounded: there the numbers are the same but for the last bits.
    np.testing.assert_allclose(found["blk.0.attn_q.weight"], sums["blk.0.attn_q.weight"] / tokens, rtol=2e-6)
    assert np.array_equal(found["blk.0.attn_q.weight"], found["blk.0.attn_v.weight"])
    assert not np.array_equal(found["blk.0.attn_q.weight"], found["blk.1.attn_q.weight"])


def test_the_texts_are_documents_cut_to_one_pass(model):
    _, source, _ = model
    long, short = ids_of(source, ["word " * 2000, "a"])
    tokenizer = Tokenizer.from_file(source / "tokenizer.json")
    assert len(long) == 512
    assert list(long[-1:]) == (tokenizer.closing or [long[-1]])
    assert list(short) == tokenizer.ids("Document: a")


def weighted_error(path, weights, importance) -> dict[str, float]:
    """Per tensor: the mean over the rows of sum(importance x (rounded - true) squared)."""
    arch = architecture.from_gguf(read_header(path).keys, len(weights["embed_tokens.weight"]))
    back = tensor_names.checkpoint_names(arch)
    return {
        t.name: float(
            ((gguf.quants.dequantize(t.data, t.tensor_type) - weights[back[t.name]]) ** 2 @ importance[t.name]).mean()
        )
        for t in gguf.GGUFReader(path).tensors
        if t.name in importance
    }


def test_it_changes_the_files_and_lowers_the_weighted_error(model, tmp_path):
    _, source, path = model
    rng = np.random.default_rng(0)
    with Checkpoint(source) as checkpoint:
        weights = dict(checkpoint.merged("retrieval"))
        shapes, renamed = architecture.tensors(checkpoint.arch), tensor_names.gguf_names(checkpoint.arch)
        layers = architecture.projections(checkpoint.arch)
    # Inputs of real models have a few columns that are a hundred times the others.
    importance = {renamed[n]: np.exp(2 * rng.standard_normal(shapes[n][1])).astype(np.float32) for n in layers}
    for label in ("Q4_K_M", "Q4_0"):
        for name, given in (("plain", None), ("weighted", importance)):
            out = tmp_path / f"{name}-{label}.gguf"
            engine.quantize(path, out, FILE_TYPES[label], threads=2, imatrix=given)
        plain, weighted = (
            weighted_error(tmp_path / f"{n}-{label}.gguf", weights, importance) for n in ("plain", "weighted")
        )
        assert sum(weighted.values()) < 0.9 * sum(plain.values()), label
        better = [name for name in plain if weighted[name] < plain[name]]
        assert len(better) == len(plain) == 14


@pytest.mark.sampled
def test_the_whole_way_writes_what_was_used(model, tmp_path):
    kind, source, _ = model
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(["", *TEXTS, "  "]), encoding="utf-8")
    told: list[tuple[str, int, int]] = []
    to_gguf(
        source,
        tmp_path / "out",
        tasks=["retrieval"],
        types=["Q4_K_M", "F16", "Q2_K_S"],  # Q2_K_S cannot be made without
        threads=1,
        imatrix=texts,
        progress=lambda *step: told.append(step),
    )
    to_gguf(source, tmp_path / "plain", tasks=["retrieval"], types=["Q4_K_M", "F16"])
    name = f"v5-{kind}-retrieval-Q4_K_M.gguf"
    keys = read_header(tmp_path / "out" / name).keys
    assert keys["quantize.imatrix.entries_count"] == 14
    assert keys["quantize.imatrix.chunks_count"] == 3
    assert keys["quantize.imatrix.dataset"] == imatrix.digest([*TEXTS[:2], TEXTS[2].strip()])
    assert (tmp_path / "out" / name).read_bytes()[-50_000:] != (tmp_path / "plain" / name).read_bytes()[-50_000:]
    half = name.replace("Q4_K_M", "F16")
    assert (tmp_path / "out" / half).read_bytes() == (tmp_path / "plain" / half).read_bytes()
    assert read_header(tmp_path / "out" / name.replace("Q4_K_M", "Q2_K_S")).weights == "Q2_K_S"
    assert ("importance retrieval", 3, 3) in told
    assert told[-1][0] == "retrieval Q2_K_S"
    assert told[-1][1] == told[-1][2]


def test_an_importance_of_the_wrong_length_is_refused(model, tmp_path):
    _, _, path = model
    wrong = {"blk.0.attn_q.weight": np.ones(5, np.float32)}
    with pytest.raises(EngineError, match=r"imatrix size 5 is different from tensor size 256 for blk\.0\.attn_q"):
        engine.quantize(path, tmp_path / "x.gguf", FILE_TYPES["Q4_K_M"], threads=1, imatrix=wrong)
    wrong["blk.0.attn_q.weight"] = np.full(256, np.nan, np.float32)
    with pytest.raises(EngineError, match="imatrix contains non-finite value"):
        engine.quantize(path, tmp_path / "x.gguf", FILE_TYPES["Q4_K_M"], threads=1, imatrix=wrong)


def test_a_pass_that_would_end_the_process_is_refused(model):
    _, _, path = model
    rows = read_header(path).tensors["token_embd.weight"].shape[0]
    for ids in ([rows], [-1], [], [1] * 513):
        with pytest.raises(EngineError, match="does not fit the model"):
            imatrix.collect(path, [np.array(ids, np.int32)], threads=1)


def test_an_interrupt_in_the_middle_of_a_pass_stops_it(model):
    _, _, path = model
    calls = 0

    def watch(address: int, ask: bool) -> bool:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise KeyboardInterrupt
        return False

    with (
        engine.Passes(path, tokens=16, threads=1, watch=watch) as passes,
        pytest.raises(KeyboardInterrupt),
    ):
        passes.run(np.array([1, 2, 3], np.int32))
    assert calls == 20, "nothing is asked after the exception"


def test_files_that_hold_no_texts_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere: is not a file\. --imatrix takes a text file in UTF-8"):
        imatrix.read_texts(tmp_path / "nowhere")
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(UsageError, match="empty: has no text in it"):
        imatrix.read_texts(tmp_path / "empty")
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    with pytest.raises(UsageError, match=r"latin: is not UTF-8 \(byte 3\)"):
        imatrix.read_texts(tmp_path / "latin")


def test_another_layout_of_tensors_is_refused(monkeypatch):
    fields = [field for field in engine.Tensor._fields_ if field[0] != "view_offs"]
    older = type("Tensor", (engine.ctypes.Structure,), {"_fields_": fields})
    monkeypatch.setattr(engine, "Tensor", older)
    with pytest.raises(EngineError, match=r"lays its tensors out in another way than 0\.3\.36"):
        engine.Reader()
