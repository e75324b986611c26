"""llama.cpp on v3 and on both rerankers: right rows in any company and order, nothing that aborts or misleads.

The files are written here, by the gguf package alone, from weights drawn at random: no converter has a part in it.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="GGUF test files are written with it: pip install 'jina_local[convert]'")

from convert.verify.reference import hidden_states, logits
from jina_local.backends.llama.repack import survives
from jina_local.errors import EngineError, ModelDamaged
from jina_local.inference.batching import pack
from jina_local.spec import NO_TASK, TokenBatch
from jina_local.text.tokenizer import Encoded
from jina_local.weights import tensor_names
from jina_local.weights.architecture import POSITION_OFFSET, Architecture
from tests import made
from tests.backends.test_llama import backend
from tests.oracle import cosines

pytestmark = pytest.mark.llama
SHAPE = {"hidden": 128, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 64, "intermediate": 256, "vocab": 300}
V3 = Architecture(kind="jina-bert-v3", eps=1e-5, rope_theta=20000.0, max_positions=8192, **SHAPE)
CROSS = Architecture(kind="bert", eps=1e-5, rope_theta=0.0, max_positions=1024, labels=1, **SHAPE)
LISTWISE = Architecture(kind="qwen3", eps=1e-6, rope_theta=1e6, max_positions=131072, **SHAPE)
LENGTHS = (1, 2, 17, 64, 100, 33, 256, 511, 513, 900, 1024)
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}


@functools.cache
def weights_of(arch):
    """Every tensor under its GGUF name: linear layers keep the size of what passes through them."""
    rng = np.random.default_rng(7)
    out = {}
    for name, shape in tensor_names.gguf_shapes(arch).items():
        drawn = rng.standard_normal(shape, np.float32)
        if "norm" in name:
            drawn = 0.1 * drawn + (0 if name.endswith("bias") else 1)
        elif name.endswith("bias"):
            drawn *= 0.1
        elif name.startswith(("blk.", "cls.")):
            drawn /= np.sqrt(shape[1], dtype=np.float32)
        out[name] = drawn.astype(np.float32)
    return out


def padding_row(arch):
    """The position of a padding token."""
    return np.random.default_rng(8).standard_normal(arch.hidden, np.float32)


def write(path, arch, label="F32", without=(), padding=True):
    """A GGUF of these weights with the keys that llama.cpp needs; `padding`: with the padding token's row."""
    import gguf

    out = gguf.GGUFWriter(path, arch.kind)
    out.add_block_count(arch.layers)
    out.add_context_length(arch.max_positions)
    out.add_embedding_length(arch.hidden)
    out.add_feed_forward_length(arch.intermediate)
    out.add_head_count(arch.heads)
    out.add_head_count_kv(arch.kv_heads)
    out.add_key_length(arch.head_dim)
    out.add_value_length(arch.head_dim)
    out.add_file_type(FILE_TYPES[label])
    if arch.causal:
        out.add_layer_norm_rms_eps(arch.eps)
    else:
        out.add_layer_norm_eps(arch.eps)
        out.add_causal_attention(False)
        out.add_token_type_count(1)
    if arch.rope_theta:
        out.add_rope_freq_base(arch.rope_theta)
    elif padding:
        out.add_array("jina_local.padding_position", padding_row(arch).tolist())
    out.add_tokenizer_model("t5")
    kind = gguf.GGMLQuantizationType[label]
    for name, data in weights_of(arch).items():
        if name in without:
            continue
        packed = label != "F32" and name.endswith(("_embd.weight", "qkv.weight", "ffn_up.weight", "ffn_down.weight"))
        if packed and name != "position_embd.weight":
            out.add_tensor(name, gguf.quantize(data, kind), raw_dtype=kind)
        else:
            out.add_tensor(name, data)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return Path(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(arch, label) -> file, each written once."""
    folder = tmp_path_factory.mktemp("family")
    return functools.cache(lambda arch, label="F32": write(folder / f"{arch.kind}-{label}.gguf", arch, label))


def texts(arch, lengths=LENGTHS):
    rng = np.random.default_rng(3)
    ids = [rng.integers(0, arch.vocab, n).astype(np.int32) for n in lengths]
    return Encoded(ids, np.zeros(len(ids), np.bool_))


def canonical(arch):
    """The same weights under checkpoint names, positions after a row that no token has and the padding token's."""
    back = tensor_names.checkpoint_names(arch)
    out = {back[name]: data for name, data in weights_of(arch).items()}
    table = "embeddings.position_embeddings.weight"
    if table in out:
        before = np.full((POSITION_OFFSET, arch.hidden), np.nan, np.float32)
        before[-1] = padding_row(arch)
        out[table] = np.concatenate([before, out[table]])
    return out


def at(ids, wanted):
    wanted = np.array(wanted, np.int32)
    return TokenBatch(ids, np.array([0, len(ids)], np.int32), wanted, np.zeros(len(wanted), np.int32))


def test_v3_all_rows_equal_the_reference_as_far_as_the_table_of_gelu_goes(files):
    """ggml looks GELU up in 16 bits: 1e-3 in a value, 1e-6 in a cosine."""
    engine, encoded, weights = backend(files(V3)), texts(V3), canonical(V3)
    for i, ids in enumerate(encoded.ids):
        expected = hidden_states(V3, weights, ids)
        rows = engine.forward(pack(encoded, [i], "mean"))
        assert rows.shape == (len(ids), V3.hidden)
        assert rows.dtype == np.float32
        assert cosines(rows, expected).min() > 0.999999, len(ids)
        assert np.abs(rows - expected).max() < 5e-3, len(ids)
        assert cosines(rows.mean(0), expected.mean(0)) > 0.999999
    engine.close()


# Weight type -> least cosine of a row in company to the row alone, most difference of a logit.
COMPANY = {"F32": (0.999999, 1e-3), "F16": (0.99999, 2e-3), "Q8_0": (0.9995, 0.05), "Q4_0": (0.999, 0.1)}


@pytest.mark.sampled
@pytest.mark.parametrize("label", COMPANY)
def test_v3_rows_are_the_same_in_any_company(files, label):
    engine, encoded = backend(files(V3, label)), texts(V3)
    alone = [engine.forward(pack(encoded, [i], "mean")) for i in range(6)]
    np.testing.assert_array_equal(engine.forward(pack(encoded, [2], "mean")), alone[2])
    for group in ([0, 1, 2, 3, 4, 5], [5, 3, 0, 4], [4, 1], [3] * 40):
        rows = engine.forward(pack(encoded, group, "mean"))
        assert cosines(rows, np.concatenate([alone[i] for i in group])).min() > COMPANY[label][0]
    engine.close()


def test_of_an_encoder_rows_may_be_asked_for_in_any_number(files):
    engine, encoded = backend(files(V3)), texts(V3, (600,))
    every = engine.forward(pack(encoded, [0], "mean"))
    for wanted in ([0], [599], [3, 77, 78, 500]):
        np.testing.assert_array_equal(engine.forward(at(encoded.ids[0], wanted)), every[wanted])
    engine.close()


@pytest.mark.sampled
@pytest.mark.parametrize("label", COMPANY)
def test_logits_are_the_reference_classifiers_in_any_company(files, label):
    engine, encoded, weights = backend(files(CROSS, label)), texts(CROSS), canonical(CROSS)
    assert engine.hidden == 1
    alone = np.concatenate([engine.forward(pack(encoded, [i], "first")) for i in range(len(LENGTHS))])
    assert alone.shape == (len(LENGTHS), 1)
    assert alone.dtype == np.float32
    expected = np.stack([logits(CROSS, weights, ids) for ids in encoded.ids])
    assert np.abs(alone - expected).max() < {"F32": 2e-3, "F16": 5e-3, "Q8_0": 0.1, "Q4_0": 0.5}[label]
    assert np.ptp(alone) > 0.2, "the texts have different scores"
    np.testing.assert_array_equal(engine.forward(pack(encoded, [4], "first")), alone[[4]])
    for group in ([0, 1, 2, 3, 4, 5], [5, 3, 0, 4], [2, 9], [3, 1] * 60):
        assert np.abs(engine.forward(pack(encoded, group, "first")) - alone[group]).max() < COMPANY[label][1]
    engine.close()


# Padding tokens (1) at the start, at the end, side by side, beyond one lane's tokens, and nothing else.
PADDED = [[1, 5], [1, 1, 9, 7], [5, 1], [5, 1, 1, 6, 1, 7], [1], [1, 1, 1], [5, 9, 1] * 341, [*range(2, 290), 1] * 3]


@pytest.mark.sampled
@pytest.mark.parametrize("label", COMPANY)
def test_padding_tokens_are_read_and_not_counted(files, label):
    """llama.cpp is given repeated positions, and embeddings in the place of ids."""
    engine, weights = backend(files(CROSS, label)), canonical(CROSS)
    encoded = Encoded([np.array(ids, np.int32) for ids in PADDED], np.zeros(len(PADDED), np.bool_))
    alone = np.concatenate([engine.forward(pack(encoded, [i], "first")) for i in range(len(PADDED))])
    expected = np.stack([logits(CROSS, weights, ids) for ids in encoded.ids])
    assert np.abs(alone - expected).max() < {"F32": 2e-3, "F16": 5e-3, "Q8_0": 0.1, "Q4_0": 0.5}[label]
    together = engine.forward(pack(encoded, [5, 3, 2, 1, 0, 4], "first"))
    assert np.abs(together - alone[[5, 3, 2, 1, 0, 4]]).max() < COMPANY[label][1]
    engine.close()


def test_beside_a_text_with_padding_tokens_a_text_has_the_same_bits(files):
    """Its pass then brings embeddings for every token: the same numbers that llama.cpp reads off its table."""
    engine = backend(files(CROSS), threads=1)
    plain, other, padded = ([*range(3, 3 + n)] for n in (20, 30, 30))
    padded[7] = 1

    def run(*texts):
        encoded = Encoded([np.array(ids, np.int32) for ids in texts], np.zeros(len(texts), np.bool_))
        return engine.forward(pack(encoded, range(len(texts)), "first"))

    np.testing.assert_array_equal(run(plain, padded)[0], run(plain, other)[0])
    assert np.abs(run(plain, padded)[1] - run(plain, other)[1]).max() > 1e-3
    engine.close()


def test_a_file_without_the_padding_tokens_position_refuses_a_text_that_spells_it(tmp_path):
    engine, encoded = backend(write(tmp_path / "stock.gguf", CROSS, padding=False)), texts(CROSS, (30, 30))
    encoded.ids[0][encoded.ids[0] == 1] = 5
    encoded.ids[1][4] = 1
    assert np.isfinite(engine.forward(pack(encoded, [0], "first"))).all()
    message = r"stock\.gguf: a text spells the padding token, <pad>, .* Convert .* again \(python -m convert gguf\)"
    with pytest.raises(EngineError, match=message):
        engine.forward(pack(encoded, [0, 1], "first"))
    assert np.isfinite(engine.forward(pack(encoded, [0], "first"))).all()
    engine.close()


@pytest.mark.parametrize(
    "row", [[0.0] * 127, [float("nan")] * 128, [1] * 128, "a text"], ids=["short", "nan", "int", "str"]
)
def test_a_damaged_position_of_the_padding_token_is_refused_at_load(tmp_path, monkeypatch, row):
    import gguf

    add = gguf.GGUFWriter.add_array
    if row == "a text":
        monkeypatch.setattr(gguf.GGUFWriter, "add_array", lambda self, key, _: self.add_string(key, row))
    else:
        monkeypatch.setattr(gguf.GGUFWriter, "add_array", lambda self, key, _: add(self, key, row))
    path = write(tmp_path / "damaged.gguf", CROSS)
    with pytest.raises(
        ModelDamaged, match=r"damaged\.gguf: jina_local\.padding_position is not a row of 128 numbers"
    ):
        backend(path)


def test_a_classifier_without_its_table_of_positions_is_refused(tmp_path):
    with pytest.raises(ModelDamaged, match=r"holds no position_embd\.weight"):
        backend(write(tmp_path / "placeless.gguf", CROSS, without=("position_embd.weight",)))


def test_what_would_abort_or_mislead_a_classifier_is_refused(files):
    engine, encoded = backend(files(CROSS)), texts(CROSS)
    with pytest.raises(EngineError, match="a text of 1025 tokens; the model has positions for 1024"):
        engine.forward(at(np.ones(1025, np.int32), [0]))
    for wanted in ([0, 1], [5]):
        with pytest.raises(EngineError, match="a classifier reads the first token of every text"):
            engine.forward(at(encoded.ids[3], wanted))
    with pytest.raises(EngineError, match="token id 300 is outside the model's table of 300 rows"):
        engine.forward(at(np.array([5, 300], np.int32), [0]))
    with pytest.raises(EngineError, match="n_seq_max must be <= 256"):
        engine.forward(pack(encoded, [0] * 257, "first"))
    assert np.isfinite(engine.forward(pack(encoded, [0], "first"))).all()
    engine.close()


@pytest.mark.parametrize("absent", ["cls.weight", "cls.output.weight", "cls.output.bias"])
def test_a_file_without_its_whole_classifier_is_refused(tmp_path, absent):
    path = write(tmp_path / "headless.gguf", CROSS, without=(absent,))
    with pytest.raises(ModelDamaged, match=rf"its classifier is incomplete; it has no {absent}"):
        backend(path)


@pytest.mark.parametrize("arch", [V3, CROSS], ids=lambda arch: arch.kind)
def test_nan_weights_are_refused_at_load(files, arch, tmp_path):
    from jina_local.formats.gguf import read_header

    raw = bytearray(files(arch, "F16").read_bytes())
    tensor = read_header(files(arch, "F16")).tensors["blk.1.ffn_up.weight"]
    raw[tensor.start : tensor.start + 2] = b"\xff\xff"
    (tmp_path / "nan.gguf").write_bytes(raw)
    with pytest.raises(ModelDamaged, match="llama.cpp cannot load it: .*invalid data"):
        backend(tmp_path / "nan.gguf")


@pytest.mark.parametrize("arch", [V3, CROSS, LISTWISE], ids=lambda arch: arch.kind)
def test_two_threads_get_their_own_rows(files, arch):
    engine, encoded = backend(files(arch), threads=2), texts(arch)
    how = {"jina-bert-v3": "mean", "bert": "first", "qwen3": "last"}[arch.kind]
    expected = [engine.forward(pack(encoded, [i], how), 2) for i in range(len(LENGTHS))]
    wrong, start = [], threading.Barrier(2)

    def work(seed):
        start.wait()
        for i in np.random.default_rng(seed).permutation(len(LENGTHS)).tolist() * 2:
            if not np.array_equal(engine.forward(pack(encoded, [i], how), 2), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    engine.close()


MARKS = {
    "the last of eight ubatches": [3999],
    "the first of them": [3],
    "one in the middle": [1100, 1101, 1300],
    "some have none": [0, 511, 512, 3000],
    "126, scattered": list(range(20, 3990, 32))[:126],
    "126 side by side": list(range(1025, 1151)),
}


@pytest.mark.parametrize(
    ("label", "cases"),
    [
        ("F16", ["some have none", "126, scattered"]),
        pytest.param("F16", list(MARKS), marks=pytest.mark.slow),
        pytest.param("F32", list(MARKS), marks=pytest.mark.slow),
    ],
    ids=["F16-some", "F16-all", "F32-all"],
)
def test_marked_rows_of_a_long_prompt_come_in_order(files, label, cases):
    engine, ids = backend(files(LISTWISE, label)), texts(LISTWISE, (4000,)).ids[0]
    every = engine.forward(at(ids, range(4000)))
    for case in cases:
        wanted = MARKS[case]
        rows = engine.forward(at(ids, wanted))
        assert rows.shape == (len(wanted), LISTWISE.hidden)
        assert cosines(rows, every[wanted]).min() > 0.999999, case
    engine.close()


@pytest.mark.parametrize("length", [513, 536, 1030, 2000])
def test_the_last_rows_of_a_32_bit_prompt_are_as_good_as_the_first(files, length):
    """Flash attention would put them off by 5e-4, and by 2e-3 in a short last ubatch."""
    engine, ids = backend(files(LISTWISE)), texts(LISTWISE, (length,)).ids[0]
    wanted = [4, length - 20, length - 1]
    rows, right = engine.forward(at(ids, wanted)), hidden_states(LISTWISE, canonical(LISTWISE), ids)[wanted]
    assert np.abs(rows - right).max() < 1e-5
    engine.close()


@pytest.mark.slow
def test_the_usual_block_of_documents_reuses_one_context(files, monkeypatch):
    from jina_local.backends.llama import pool

    made_ones = []

    class Counted(pool.Context):
        def __init__(self, *args):
            made_ones.append(args[1])
            super().__init__(*args)

    monkeypatch.setattr(pool, "Context", Counted)
    engine, ids = backend(files(LISTWISE)), texts(LISTWISE, (2048,)).ids[0]
    first = engine.forward(at(ids, range(30, 2030, 31)))
    again = engine.forward(at(ids, range(30, 2030, 31)))
    np.testing.assert_array_equal(first, again)
    engine.forward(at(ids[:400], range(10, 390, 3)))
    assert made_ones == [2048]
    engine.forward(at(ids, range(129)))
    assert made_ones == [2048, 2048], "more rows than it has room for"
    engine.close()


def test_a_prompt_that_cannot_fit_is_refused_and_says_what_to_lower(files, monkeypatch):
    from jina_local.backends.llama import context

    engine = backend(files(LISTWISE, "F16"))
    monkeypatch.setattr(context, "available_memory", lambda: 100_000_000)
    message = (
        r"a pass of 131072 tokens .* 0\.3 GB beside .* Lower max_length \(of a reranker: max_doc_length, or block_"
    )
    with pytest.raises(EngineError, match=message):
        engine.forward(at(np.ones(131072, np.int32), [5]))
    assert engine.forward(at(np.ones(8192, np.int32), [5])).shape == (1, LISTWISE.hidden)
    engine.close()


def test_the_base_alone_can_be_asked_for_beside_its_adapters():
    folder = made.gguf_separate("nano", "F32", "Q8_0")
    base = folder / "v5-nano-base-F32.gguf"
    ids = np.arange(40, dtype=np.int32)
    engine = backend(base, adapters={"retrieval": folder / "v5-nano-retrieval-adapter.gguf"}, threads=1)
    adapted = engine.forward(at(ids, [39]), 1, "retrieval")
    alone = engine.forward(at(ids, [39]), 1, NO_TASK)
    np.testing.assert_array_equal(engine.forward(at(ids, [39]), 1, "retrieval"), adapted)
    engine.close()
    engine = backend(base, threads=1)
    np.testing.assert_array_equal(engine.forward(at(ids, [39])), alone)
    engine.close()
    assert cosines(adapted, alone)[0] < 0.9


def test_adapters_of_v3_are_refused_because_llama_cpp_drops_a_part_of_them(files, tmp_path):
    with pytest.raises(ModelDamaged, match=r"ignores an adapter's factors .* jina-bert-v3 runs merged on it"):
        backend(files(V3), adapters={"separation": tmp_path / "adapter.gguf"})


def test_the_trial_of_repacking_comes_to_a_verdict_with_a_classifier(files, monkeypatch, tmp_path):
    """It asks for one row, which is the first token's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert survives(files(CROSS, "Q8_0"), "Q8_0") is not None
