"""v3 and the rerankers against transformers on random weights: the plain reference, both readers, both engines."""

from __future__ import annotations

import functools
from contextlib import closing

import numpy as np
import pytest

from convert.verify.reference import hidden_states, logits
from jina_local import backends, load
from jina_local.inference.batching import pack
from jina_local.spec import RERANK, TokenBatch
from jina_local.store import find
from jina_local.text.tokenizer import Encoded
from jina_local.weights import projector
from jina_local.weights.checkpoint import Checkpoint
from tests import made, tiny_v3_and_rerankers
from tests.oracle import cosines
from tests.oracle_v3_and_reranker_v2 import OracleV3
from tests.parity.test_rerankers import Listwise, Pairwise

pytestmark = [pytest.mark.reference, pytest.mark.slow]

TASKS = (*tiny_v3_and_rerankers.V3_TASKS, "none")
LENGTHS = (1, 2, 3, 17, 64, 200)
TEXTS = (
    "", " ", "x", "Which planet is known as the Red Planet?", "naïve café, e\u0301tude, Ångström ﬁne ＡＢＣ½",
    "日本語のテキスト、中文也可以。", "العربية من اليمين إلى اليسار", "हिन्दी में एक वाक्य", "русский и ελληνικά",
    "👩‍👩‍👧‍👦 emoji 🏳️‍🌈", "def f(x):\n\treturn x + 1\n", "<s> </s> <mask> <pad>", "a" * 300, "\r\n" * 20 + "x",
    *(" ".join(f"word{i % 37}" for i in range(n)) for n in (3, 9, 31, 32, 33, 60, 400)),
)  # fmt: skip
# Least cosine and greatest difference; llama.cpp takes GELU from a table of half-precision numbers.
FORMS = [
    pytest.param("v3", "checkpoint", 0.999999, 1e-5, marks=pytest.mark.mlx, id="mlx-original"),
    pytest.param("v3-native", "checkpoint", 0.999999, 1e-5, marks=pytest.mark.mlx, id="mlx-native"),
    pytest.param("v3", 32, 0.999999, 1e-5, marks=pytest.mark.mlx, id="mlx-32"),
    pytest.param("v3-native", "onnx", 0.999999, 1e-5, marks=pytest.mark.onnx, id="onnx-native"),
    pytest.param("v3", "onnx", 0.999999, 1e-5, marks=pytest.mark.onnx, id="onnx-32"),
    pytest.param("v3", "F32", 0.99999, 2e-3, marks=pytest.mark.llama, id="gguf-F32"),
]


@functools.cache
def oracle(task: str) -> OracleV3:
    return OracleV3(made.checkpoint("v3"), None if task == "none" else task)


@functools.cache
def expected(task: str) -> np.ndarray:
    return oracle(task).vectors(list(TEXTS), tiny_v3_and_rerankers.V3_PROMPTS.get(task, ""))


def some_ids(vocab: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, vocab, n).astype(np.int32) for n in LENGTHS]


def some_padded_ids(vocab: int) -> list[np.ndarray]:
    """Some of them padding ids, which have a position of their own and are not counted."""
    texts = some_ids(vocab)
    for ids in texts[1:]:
        ids[len(ids) // 2 :: 7] = 1
    return texts


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["v3", "v3-native"])
def test_the_plain_reference_on_what_each_layout_merges_to(kind, task):
    with Checkpoint(made.checkpoint(kind)) as checkpoint:
        held = dict(checkpoint.merged(task))
        for ids in some_ids(checkpoint.arch.vocab):
            mine, theirs = hidden_states(checkpoint.arch, held, ids), oracle(task).states(ids)
            assert cosines(mine, theirs).min() > 0.9999999
            assert np.abs(mine - theirs).max() < 2e-5


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's call, transformers' name
def test_transformers_and_peft_read_the_native_layout_as_we_do():
    """The folder as it is, through their own loaders: base, conversion of names, and adapters with their flips."""
    peft = pytest.importorskip("peft")
    import torch
    import transformers

    folder = made.checkpoint("v3-native")
    ids = some_ids(600)[4]
    for task in tiny_v3_and_rerankers.V3_TASKS:
        base = transformers.JinaEmbeddingsV3Model.from_pretrained(folder, dtype=torch.float32).eval()
        model = peft.PeftModel.from_pretrained(base, folder / tiny_v3_and_rerankers.FOLDERS[task]).eval()
        with torch.no_grad():
            theirs = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None])[0][0].numpy()
        assert np.abs(theirs - oracle(task).states(ids)).max() < 2e-5


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("kind", "form", "least", "most"), FORMS)
def test_vectors_of_every_task(kind, form, least, most, task):
    with load(made.v3(kind, form), task=task) as m:
        found = m.encode(list(TEXTS), task=task)
        assert cosines(found, expected(task)).min() >= least
        assert np.abs(found - expected(task)).max() <= most
        alone = np.stack([m.encode(text, task=task) for text in TEXTS[:8]])
        assert np.abs(alone - found[:8]).max() <= 2e-5
        narrow = m.encode(list(TEXTS), task=task, truncate_dim=64)
    first = expected(task)[:, :64]
    assert cosines(narrow, first).min() >= least


@pytest.mark.parametrize(
    "backend", [pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("mlx", "onnx")]
)
def test_the_tasks_beside_one_base(backend):
    """No task at load: every adapter runs beside the base, on the tables too."""
    with load(made.v3("v3", "checkpoint"), backend=backend) as m:
        for task in (*TASKS, "separation"):
            assert cosines(m.encode(list(TEXTS[:12]), task=task), expected(task)[:12]).min() >= 0.999999


def test_the_tasks_are_told_apart():
    """What a wrong adapter would give is far outside what the tests above allow."""
    for i, one in enumerate(TASKS):
        for other in TASKS[:i]:
            assert cosines(expected(one), expected(other)).max() < 0.99


@functools.cache
def pairwise() -> Pairwise:
    return Pairwise(made.checkpoint("reranker-v2"))


def their_logits(texts: list[np.ndarray]) -> np.ndarray:
    import torch

    with torch.no_grad():
        given = (torch.from_numpy(ids.astype(np.int64))[None] for ids in texts)
        return np.array([float(pairwise().model(input_ids=one).logits) for one in given])


def test_logits_of_the_plain_reference():
    with Checkpoint(made.checkpoint("reranker-v2")) as checkpoint:
        arch, held = checkpoint.arch, dict(checkpoint.merged(None))
    texts = some_padded_ids(arch.vocab)
    mine = np.array([logits(arch, held, ids)[0] for ids in texts])
    assert np.abs(mine - their_logits(texts)).max() < 2e-5
    assert np.ptp(mine) > 0.5


@pytest.mark.parametrize(
    ("form", "most"),
    [
        pytest.param("checkpoint", 1e-4, marks=pytest.mark.mlx),
        pytest.param(32, 1e-4, marks=pytest.mark.mlx),
        pytest.param("onnx", 1e-4, marks=pytest.mark.onnx),
        pytest.param("F32", 5e-3, marks=pytest.mark.llama),
    ],
)
def test_logits_of_the_engines(form, most):
    found = find.find(made.reranker("reranker-v2", form))
    texts = some_padded_ids(600)
    with closing(backends.open_backend(found.backend, found.files[RERANK])) as engine:
        batch = pack(Encoded(texts, np.zeros(len(texts), np.bool_)), range(len(texts)), "first")
        mine = engine.forward(batch)
    assert mine.shape == (len(texts), 1)
    assert np.abs(mine[:, 0] - their_logits(texts)).max() <= most


def test_states_and_projector_of_the_listwise_reranker():
    import torch

    listwise = Listwise(made.checkpoint("reranker-v3"))
    ids = some_ids(500)[5]
    marked = np.array([20, 90, 150, 199], np.int32)
    with torch.no_grad():
        states = listwise.model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state[0]
        projected = torch.relu(states[marked.tolist()] @ listwise.first.T) @ listwise.second.T
        theirs = torch.nn.functional.cosine_similarity(projected[-1:], projected[:-1]).numpy()
    project = projector.read(made.checkpoint("reranker-v3"), states.shape[1])
    with Checkpoint(made.checkpoint("reranker-v3")) as checkpoint:
        mine = hidden_states(checkpoint.arch, dict(checkpoint.merged(None)), ids)
    assert np.abs(mine - states.numpy()).max() < 2e-4
    rows = [mine[marked], *(_marked_states(form, ids, marked) for form in ("checkpoint", "onnx", "F32"))]
    for found in rows:
        vectors = project(found)
        assert cosines(vectors, projected.numpy()).min() >= 0.999999
        assert np.abs(cosines(vectors[-1:], vectors[:-1]) - theirs).max() <= 1e-4


def _marked_states(form, ids, marked):
    found = find.find(made.reranker("reranker-v3", form))
    if not backends.installed(found.backend):
        pytest.skip(f"{found.backend} is not installed")
    batch = TokenBatch(ids, np.array([0, len(ids)], np.int32), marked, np.zeros(len(marked), np.int32))
    with closing(backends.open_backend(found.backend, found.files[RERANK])) as engine:
        return engine.forward(batch)
