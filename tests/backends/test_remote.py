"""Engines in a process of their own: the same bits and the same errors."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest

from jina_local import load
from jina_local.backends import open_backend
from jina_local.backends.remote import REASON
from jina_local.errors import EngineCrashed, EngineError, ModelDamaged, UsageError
from tests import made
from tests.faulty import TEXTS, batch

EMBEDDERS = [
    pytest.param(lambda: made.gguf_file("nano", "Q8_0"), None, marks=pytest.mark.llama, id="nano-Q8_0"),
    pytest.param(lambda: made.gguf_file("small", "F32"), None, marks=pytest.mark.llama, id="small-F32"),
    pytest.param(lambda: made.gguf_separate("small", "F16"), None, marks=pytest.mark.llama, id="small-gguf-beside"),
    pytest.param(lambda: made.gguf_separate("nano", "F32"), None, marks=pytest.mark.llama, id="nano-gguf-beside"),
    pytest.param(lambda: made.checkpoint("nano"), None, marks=pytest.mark.mlx, id="nano-checkpoint-beside"),
    pytest.param(lambda: made.checkpoint("small"), "clustering", marks=pytest.mark.mlx, id="small-checkpoint-merged"),
    pytest.param(lambda: made.mlx("nano", 8), None, marks=pytest.mark.mlx, id="nano-8bit"),
    pytest.param(lambda: made.v3("v3", "Q8_0"), None, marks=pytest.mark.llama, id="v3-Q8_0"),
    pytest.param(lambda: made.checkpoint("v3"), None, marks=pytest.mark.mlx, id="v3-checkpoint-beside"),
    pytest.param(lambda: made.checkpoint("v3-native"), "separation", marks=pytest.mark.mlx, id="v3-native-merged"),
    pytest.param(lambda: made.v3("v3", 8), None, marks=pytest.mark.mlx, id="v3-8bit"),
]


@pytest.mark.sampled
@pytest.mark.parametrize(("path", "task"), EMBEDDERS)
def test_vectors_have_the_same_bits(path, task):
    def vectors(isolate):
        with load(path(), task=task, isolate=isolate) as model:
            tasks = [task] if task else model.spec.tasks[-2:]
            got = [model.encode(TEXTS, task=one, deterministic=n == 1) for n, one in enumerate(tasks)]
            if model.spec.late_chunking:
                got.append(model.encode_chunks("One sentence. And one more.", [(0, 13), (14, 27)], task=tasks[0]))
            return got, model.spec.origin

    (here, origin), (apart, other) = vectors(None), vectors("process")
    assert [one.tobytes() for one in apart] == [one.tobytes() for one in here]
    assert other.reasons == (*origin.reasons, REASON)
    assert (other.device, other.dtype, other.threads) == (origin.device, origin.dtype, origin.threads)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("kind", "form"),
    [
        pytest.param(kind, form, marks=getattr(pytest.mark, engine), id=f"{kind}-{form}")
        for kind in ("reranker-v3", "reranker-v2")
        for form, engine in (("Q8_0", "llama"), ("checkpoint", "mlx"))
    ],
)
def test_scores_have_the_same_bits(kind, form):
    def scores(isolate):
        with load(made.reranker(kind, form), isolate=isolate) as model:
            assert (REASON in model.spec.origin.reasons) == (isolate is not None)
            return [(one.index, one.score) for one in model.rerank("Which planet is red?", TEXTS[1:])]

    assert scores("process") == scores(None)


@pytest.mark.llama
@pytest.mark.parametrize("wanted", ["first", "last", "mean"])
def test_rows_and_errors_of_a_pass_are_the_same(wanted):
    path = made.gguf_file("nano", "F32")
    with contextlib.ExitStack() as stack:
        here, apart = (open_backend("llama", path, isolate=isolate) for isolate in (None, "process"))
        for engine in (here, apart):
            stack.callback(engine.close)
        for name in ("hidden", "vocab", "budget", "lanes", "device", "dtype", "threads"):
            assert getattr(apart, name) == getattr(here, name)
        one = batch([5, 6, 7], [8], list(range(20, 90)), wanted=wanted)
        assert apart.forward(one).tobytes() == here.forward(one).tobytes()
        assert apart.forward(one).flags.writeable
        for wrong, task in ((batch([10**9]), None), (batch([5]), "retrieval"), (batch([5] * 2000), None)):
            told = []
            for engine in (here, apart):
                with pytest.raises(EngineError) as error:
                    engine.forward(wrong, 1, task)
                told.append((type(error.value), str(error.value)))
            assert told[0] == told[1]


@pytest.mark.parametrize(("engine", "wrong"), [
    pytest.param("llama", {"device": "abacus"}, marks=pytest.mark.llama),
    pytest.param("llama", {"threads": 0}, marks=pytest.mark.llama),
    pytest.param("llama", {"task": "retrieval"}, marks=pytest.mark.llama),
    pytest.param("mlx", {"threads": 3}, marks=pytest.mark.mlx),
])  # fmt: skip
def test_what_cannot_be_opened_is_refused_in_the_same_words(engine, wrong):
    path = made.gguf_file("nano", "F32") if engine == "llama" else made.checkpoint("nano")
    told = []
    for isolate in (None, "process"):
        with pytest.raises(UsageError) as error:
            open_backend(engine, path, isolate=isolate, **wrong)
        told.append(str(error.value))
    assert told[0] == told[1]


@pytest.mark.llama
def test_a_damaged_file_is_refused_in_the_same_words(tmp_path):
    short = tmp_path / "short.gguf"
    short.write_bytes(made.gguf_file("nano", "F32").read_bytes()[:5000])
    for path in (short, tmp_path / "absent.gguf", tmp_path):
        told = []
        for isolate in (None, "process"):
            with pytest.raises(ModelDamaged) as error:
                open_backend("llama", path, isolate=isolate)
            told.append(str(error.value))
        assert told[0] == told[1]


def test_another_word_than_process_is_refused(tmp_path):
    with pytest.raises(UsageError, match="isolate 'thread' is unknown. Possible: 'process'"):
        open_backend("llama", tmp_path, isolate="thread")  # type: ignore[arg-type]


@pytest.mark.llama
def test_a_file_that_is_cut_while_it_is_mapped(tmp_path):
    """A fault of native code itself: llama.cpp reads a page that is not there any more."""
    path = tmp_path / "cut.gguf"
    path.write_bytes(made.gguf_file("small", "F32").read_bytes())
    with contextlib.closing(open_backend("llama", path, isolate="process")) as engine:
        assert np.isfinite(engine.forward(batch([5, 6]))).all()
        os.truncate(path, 4096)
        with pytest.raises(EngineCrashed, match=r"died \(SIGBUS: .*and its files were changed after") as error:
            engine.forward(batch([7, 8, 9]))
        assert error.value.cause.startswith("SIGBUS")


@pytest.mark.llama
def test_files_of_unknown_origin_are_isolated_if_that_is_left_to_the_rule(tmp_path):
    ours = made.gguf_file("nano", "Q8_0")
    copied = tmp_path / ours.name
    copied.write_bytes(ours.read_bytes())

    def how(name_or_path, isolate="auto"):
        with load(name_or_path, backend="llama", isolate=isolate) as model:
            return REASON in model.spec.origin.reasons, " ".join(model.spec.origin.reasons)

    assert how(copied)[0]
    assert f"isolate: {copied} has no manifest.json of our converter" in how(copied)[1]
    assert how(tmp_path)[0]
    assert not how(copied, None)[0]
    for known in (ours, ours.parent, "pico"):
        assert not how(known)[0]
        assert "isolate: the origin of the files is known" in how(known)[1]
    assert how(ours, "process")[0]
    with pytest.raises(UsageError, match="isolate 'no' is unknown. Possible: 'process', 'auto', None"):
        load("a name that is not looked for", isolate="no")
