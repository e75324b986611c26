"""A tokenizer of the right form and another model's vocabulary is refused: by its fingerprint, by a GGUF's own."""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from convert.gguf import vocabulary
from jina_local.errors import ModelDamaged
from jina_local.formats import files
from jina_local.formats.gguf import Header
from jina_local.text import fingerprint
from jina_local.text.fingerprint import KEY, check_fingerprint, check_own_vocabulary
from jina_local.text.gguf_vocabulary import FLAGS_KEY, NORMAL, UNUSED
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights import architecture
from tests import tiny

from ..formats.damage import refusal

KINDS = ("small", "nano", "v3")
BODIES = {kind: json.loads(tiny.tokenizer(kind).to_str()) for kind in KINDS}


@pytest.fixture(autouse=True)
def probed(monkeypatch):
    """The files whose own vocabulary had to be tried on texts."""
    made, original = [], fingerprint._probe
    monkeypatch.setattr(fingerprint, "_probe", lambda t, h, d: made.append(h.path.name) or original(t, h, d))
    return made


def opened(folder: Path, kind: str, change=lambda body: None, name="tokenizer.json") -> Tokenizer:
    body = copy.deepcopy(BODIES[kind])
    change(body)
    path = folder / name
    path.write_text(json.dumps(body))
    return Tokenizer.from_file(path)


def header(folder: Path, kind: str, **changed: object) -> Header:
    """Of a GGUF file with the vocabulary of a kind; the file itself is empty."""
    tokenizer = Tokenizer(json.dumps(BODIES[kind]), "x")
    sizes = {**tiny.CONFIGS["nano"], **tiny.SIZES["nano"], "vocab_size": 640}
    arch = architecture.from_config(
        {**sizes, "model_type": "qwen3", "rms_norm_eps": 1e-6} if kind == "small" else sizes
    )
    if kind == "v3":
        arch = architecture.Architecture("bert", 32, 1, 2, 2, 16, 32, 640, 1e-5, 0.0, 64, labels=1)
    vocab = vocabulary.read(tokenizer, json.dumps(BODIES[kind]).encode(), arch, {})
    writer = Keys()
    vocab.write(writer)
    keys = {**writer.keys, **{f"tokenizer.ggml.{key}": value for key, value in changed.items()}}
    path = folder / "model.gguf"
    path.touch()
    return Header(path, {k: v for k, v in keys.items() if v is not None and k != KEY}, {}, 0)


class Keys:
    """Takes what a vocabulary writes, as gguf.GGUFWriter names it, and has it as a Header does."""

    def __init__(self) -> None:
        self.keys: dict[str, object] = {}

    def __getattr__(self, name):
        key = name.removeprefix("add_")
        known = {"tokenizer_model": "model", "tokenizer_pre": "pre", "token_list": "tokens",
                 "token_types": "token_type", "token_merges": "merges", "token_scores": "scores"}  # fmt: skip
        if name in ("add_uint32", "add_string"):
            return lambda key, value: self.keys.__setitem__(key, value)

        def add(value):
            kinds = {str: str.encode, float: lambda x: float(np.float32(x))}
            raw = [kinds.get(type(x), lambda x: x)(x) for x in value] if isinstance(value, list) else value
            self.keys[f"tokenizer.ggml.{known.get(key, key)}"] = list(raw) if isinstance(raw, bytes) else raw

        return add


def test_the_right_fingerprint_passes_and_another_is_refused(tmp_path):
    tokenizer = opened(tmp_path, "nano")
    check_fingerprint(tokenizer, tokenizer.fingerprint(), "the manifest")
    with pytest.raises(
        ModelDamaged,
        match=r"tokenizer.json: gives other ids than the tokenizer that these weights were converted with: its "
        r"fingerprint is [0-9a-f]{12}, and the manifest has '0{12}'\. Put the model's own tokenizer.json beside the "
        r"weights, or convert again\. If it is the model's own, the installed tokenizers \d",
    ):
        check_fingerprint(tokenizer, "0" * 64, "the manifest")


def test_two_tokens_that_changed_places_have_another_fingerprint(tmp_path):
    def swap(body):
        vocab = body["model"]["vocab"]
        vocab["T"], vocab["D"] = vocab["D"], vocab["T"]

    expected = opened(tmp_path, "nano").fingerprint()
    with pytest.raises(ModelDamaged, match="gives other ids"):
        check_fingerprint(opened(tmp_path, "nano", swap), expected, "the manifest")


def test_the_key_of_our_own_files_is_compared(tmp_path, probed):
    tokenizer, made = opened(tmp_path, "nano"), header(tmp_path, "nano")
    made.keys[KEY] = tokenizer.fingerprint()
    check_own_vocabulary(tokenizer, made)
    made.keys[KEY] = "1" * 64
    with pytest.raises(ModelDamaged, match="and the header of .*model.gguf has '111111111111'"):
        check_own_vocabulary(tokenizer, made)
    made.keys[KEY] = 5
    with pytest.raises(ModelDamaged, match="has '5'"):
        check_own_vocabulary(tokenizer, made)
    assert probed == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_vocabulary_passes_without_a_trial(tmp_path, kind, probed):
    check_own_vocabulary(opened(tmp_path, kind), header(tmp_path, kind))
    assert probed == []


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        (
            "nano",
            lambda keys: keys["tokens"].__setitem__(slice(35, 37), [keys["tokens"][36], keys["tokens"][35]]),
            r"is not the tokenizer in .*model.gguf \(the id 35 is b'D' and b'E'\): it reads 'MiXeD123CaSe_under-scor",
        ),
        ("nano", lambda keys: keys["merges"].reverse(), r"\(the merges differ\): it reads"),
        (
            "v3",
            lambda keys: keys["scores"].__setitem__(slice(4, 300), [-9.0] * 296),
            r"\(the scores of the pieces differ\): it reads",
        ),
        ("nano", lambda keys: keys.update(pre="qwen2"), None),
        ("nano", lambda keys: keys.pop("tokens"), r"\(its header has no list of tokens .*whose own cannot be tried"),
        ("nano", lambda keys: keys["tokens"].pop(), r"has no list of tokens and their types\), whose own cannot be"),
    ],
)  # fmt: skip
def test_another_vocabulary_is_refused_with_the_first_difference(tmp_path, kind, change, told, probed):
    made = header(tmp_path, kind)
    keys = {k.removeprefix("tokenizer.ggml."): copy.copy(v) for k, v in made.keys.items()}
    change(keys)
    other = Header(made.path, {f"tokenizer.ggml.{k}" if "." not in k else k: v for k, v in keys.items()}, {}, 0)
    tokenizer = opened(tmp_path, kind)
    if told is None:
        check_own_vocabulary(tokenizer, other)  # the same tokens; which split llama.cpp takes does not matter here
        return
    with pytest.raises(ModelDamaged, match=told):
        check_own_vocabulary(tokenizer, other)
    assert probed == ["model.gguf"]


def test_a_difference_that_changes_no_ids_passes_after_a_trial(tmp_path, probed):
    made = header(tmp_path, "nano")
    merges = list(made.keys["tokenizer.ggml.merges"])
    made.keys["tokenizer.ggml.merges"] = [*merges, merges[-1]]
    check_own_vocabulary(opened(tmp_path, "nano"), made)
    assert probed == ["model.gguf"]


def test_a_token_that_only_the_gguf_has_is_a_difference(tmp_path, probed):
    made, spare = header(tmp_path, "small"), 600
    types, tokens = list(made.keys["tokenizer.ggml.token_type"]), list(made.keys["tokenizer.ggml.tokens"])
    assert types[spare] == UNUSED
    types[spare], tokens[spare] = NORMAL, b"Thq"
    with_one_more = header(tmp_path, "small", token_type=types, tokens=tokens)
    with pytest.raises(
        ModelDamaged, match=r"\(the id 600 is no token and b'Thq'\), whose own cannot be tried \(.*would get 504"
    ):
        check_own_vocabulary(opened(tmp_path, "small"), with_one_more)
    assert probed == ["model.gguf"]


def test_files_that_agreed_are_compared_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_FRESH", 0)
    compared, original = [], fingerprint._difference
    monkeypatch.setattr(fingerprint, "_difference", lambda t, h: compared.append(1) or original(t, h))
    tokenizer, made = opened(tmp_path, "nano"), header(tmp_path, "nano")
    for _ in range(2):
        check_own_vocabulary(tokenizer, made)
    assert len(compared) == 1
    os.utime(made.path, ns=(0, 5))
    check_own_vocabulary(tokenizer, made)
    assert len(compared) == 2


def test_a_rebuilt_tokenizer_is_compared_with_other_files_by_their_keys(tmp_path, probed):
    first = header(tmp_path, "nano")
    tokenizer = Tokenizer.from_gguf(first)
    check_own_vocabulary(tokenizer, first)
    check_own_vocabulary(tokenizer, header(tmp_path, "nano"))
    assert probed == []
    tokens = list(first.keys["tokenizer.ggml.tokens"])
    tokens[35], tokens[36] = tokens[36], tokens[35]
    with pytest.raises(ModelDamaged, match=r"the vocabulary in .* \(tokenizer.ggml.tokens differs\): it reads"):
        check_own_vocabulary(tokenizer, header(tmp_path, "nano", tokens=tokens))


def test_a_rebuilt_tokenizer_goes_through_the_gate(tmp_path):
    tokens = [
        f"{'x' * 600}{n}".encode() if n == 300 else t
        for n, t in enumerate(header(tmp_path, "nano").keys["tokenizer.ggml.tokens"])
    ]
    with pytest.raises(
        ModelDamaged, match=r"the vocabulary in .*: model.vocab is 'x+\.\.\.; expected tokens of at most 512"
    ):
        Tokenizer.from_gguf(header(tmp_path, "nano", tokens=tokens))


def test_three_hundred_damaged_vocabularies_raise_nothing_else(tmp_path):
    odd = [0, -1, 2**40, 0.5, float("nan"), True, "", "t5", b"", b"\xff", b"x" * 600, [], [1], [b"a"] * 640,
           [0.5] * 640, '{"1": []}', '{"505": {"lstrip": 1}}', '{"505": "lstrip"}', "[1]"]  # fmt: skip
    made, refused = {kind: header(tmp_path, kind) for kind in KINDS}, 0
    for seed in range(300):
        rng = random.Random(seed)
        whole = made[rng.choice(KINDS)]
        keys = dict(whole.keys)
        key = rng.choice([*keys, FLAGS_KEY, "tokenizer.ggml.unknown_token_id"])
        value = keys.get(key)
        if isinstance(value, list) and rng.random() < 0.5:
            keys[key] = [*value[:7], rng.choice(odd), *value[8:]]
        else:
            keys[key] = rng.choice(odd)
        told = refusal(Tokenizer.from_gguf, Header(whole.path, keys, {}, 0))
        refused += told is not None
        assert len(told or "") < 600
    assert 200 < refused < 300
