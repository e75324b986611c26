"""The gate before the tokenizer library: the models' tokenizers pass, every other component is refused and named."""

from __future__ import annotations

import base64
import copy
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

import jina_local
from jina_local import registry
from jina_local.embedding.request import resolve
from jina_local.errors import ModelDamaged
from jina_local.formats import files
from jina_local.spec import TokenizerSpec
from jina_local.text import gate
from jina_local.text.tokenizer import Tokenizer
from tests import tiny

from ..formats.damage import damaged_json, refusal

needs_shared = pytest.mark.skipif(not tiny.SHARED.exists(), reason=f"the test data is not at {tiny.SHARED}")
MODELS = {"small": "v5-small", "nano": "v5-nano", "v3": "v3", "reranker-v3": "reranker-v3",
          "reranker-v2": "reranker-v2"}  # fmt: skip
SPECS = {kind: registry.lookup(name).spec for kind, name in MODELS.items()}
BODIES = {kind: json.loads(tiny.tokenizer(kind).to_str()) for kind in MODELS}


def write(path, body):
    path.write_text(body if isinstance(body, str) else json.dumps(body), encoding="utf-8")
    return path


def opened(tmp_path, kind, change):
    """The tokenizer of a kind with its file changed, opened as the model's."""
    body = copy.deepcopy(BODIES[kind])
    change(body)
    return Tokenizer.from_file(write(tmp_path / "tokenizer.json", body), SPECS[kind].tokenizer)


@pytest.mark.parametrize("kind", MODELS)
def test_the_models_own_tokenizers_pass_and_no_other_form_does(tmp_path, kind):
    path = write(tmp_path / "tokenizer.json", BODIES[kind])
    tokenizer = Tokenizer.from_file(path, SPECS[kind].tokenizer)
    assert tokenizer.ids("Größe 123") == tiny.tokenizer(kind).encode("Größe 123").ids
    assert tokenizer.rows == 1 + max(tokenizer.vocabulary().values())
    _, passed = gate.read(path)
    for other, spec in SPECS.items():
        if spec.tokenizer.form != SPECS[kind].tokenizer.form:
            with pytest.raises(ModelDamaged, match=f"as '{passed.form}' does, and this model's tokenizer as"):
                gate.require(passed, spec.tokenizer, other)


@needs_shared
@pytest.mark.parametrize(("kind", "rows"), [("reranker-v3", 151672), ("nano", 128256), ("v3", 250002)])
def test_the_published_vocabularies_pass(tmp_path, kind, rows):
    path = write(tmp_path / "tokenizer.json", tiny.real_tokenizer(kind))
    _, passed = gate.read(path)
    assert (passed.form, passed.rows) == (SPECS[kind].tokenizer.form, rows)


def test_the_tokenizer_in_the_package_passes():
    path = Path(jina_local.__file__).parent / "bundled_models" / "pico" / "gguf" / "tokenizer.json"
    assert Tokenizer.from_file(path, registry.lookup("pico").spec.tokenizer).rows == 16384


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("small", lambda b: b.update(post_processor=None)),
        ("small", lambda b: b.update(decoder=None)),
        ("small", lambda b: b["model"].pop("ignore_merges")),
        ("small", lambda b: b["model"].update(continuing_subword_prefix="", end_of_word_suffix="")),
        ("small", lambda b: b["model"].update(merges=[" ".join(pair) for pair in b["model"]["merges"]])),
        ("v3", lambda b: b.update(normalizer=None)),
        ("v3", lambda b: b.update(normalizer={"type": "Sequence", "normalizers": [b["normalizer"], SPACES]})),
        ("v3", lambda b: b["model"].pop("byte_fallback")),
        (
            "v3",
            lambda b: b["pre_tokenizer"]["pretokenizers"].__setitem__(
                1, {"type": "Metaspace", "replacement": "\u2581", "add_prefix_space": True}
            ),
        ),
        ("reranker-v2", lambda b: b.update(post_processor=ROBERTA)),
    ],
)
def test_other_spellings_of_the_same_pass_with_the_same_ids(tmp_path, kind, change):
    text = "a  b\u3000c <mask> é"
    tokenizer = opened(tmp_path, kind, change)
    if BODIES[kind].get("normalizer") == json.loads((tmp_path / "tokenizer.json").read_text()).get("normalizer"):
        assert tokenizer.ids(text) == Tokenizer(json.dumps(BODIES[kind]), "x").ids(text)


SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
ROBERTA = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True,
           "add_prefix_space": True}  # fmt: skip
BOMB = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 60}
SPLIT = ("pre_tokenizer", "pretokenizers", 0)


def put(*way):
    """A change: the last value, at the place that the others lead to."""

    def change(body):
        for step in way[:-2]:
            body = body[step]
        body[way[-2]] = way[-1]

    return change


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("small", put("model", "dropout", 0.1), "model.dropout is 0.1; expected null"),
        ("small", put("model", "byte_fallback", True), "model.byte_fallback is True; expected False"),
        ("small", put("model", "fuse_unk", True), "model.fuse_unk is True"),
        ("small", put("model", "unk_token", "a"), "model.unk_token is 'a'"),
        ("small", put("model", "end_of_word_suffix", "</w>"), "model.end_of_word_suffix is '</w>'; expected one of"),
        ("small", put("model", "ignore_merges", True), "model.ignore_merges is True; expected False"),
        ("nano", put("model", "ignore_merges", False), "model.ignore_merges is False; expected True"),
        ("nano", lambda b: b["model"].pop("ignore_merges"), "expected an object with ignore_merges"),
        ("small", put("model", "cache", 1), "model.cache is 1; expected no such member"),
        ("small", put("model", "type", "WordPiece"), "model.type is 'WordPiece'; expected 'BPE'"),
        ("small", put("model", {}), "model.type is None; expected 'BPE'"),
        ("small", put("model", None), "model is None; expected an object"),
        ("small", put("normalizer", {"type": "NFD"}), "normalizer.type is 'NFD'; expected 'NFC'"),
        ("small", put("normalizer", None), "normalizer is None; expected an object"),
        ("small", put("normalizer", BOMB), "normalizer.type is 'Replace'; expected 'NFC'"),
        (
            "small",
            put("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}, *[BOMB] * 4]}),
            "normalizer.type is 'Sequence'; expected 'NFC'",
        ),
        ("nano", put("normalizer", {"type": "NFC"}), "normalizer is an object of 1 members; expected null"),
        ("v3", put("normalizer", BOMB), "normalizer.type is 'Replace'; expected one of 'Precompiled', 'Sequence'"),
        (
            "v3",
            lambda b: b.update(normalizer={"type": "Sequence", "normalizers": [b["normalizer"], BOMB]}),
            "normalizer.normalizers[1].pattern is an object of 1 members; expected an object with Regex",
        ),
        (
            "v3",
            lambda b: b.update(normalizer={"type": "Sequence", "normalizers": [b["normalizer"], SPACES, SPACES]}),
            "normalizer.normalizers is a list of 3; expected a list of 2",
        ),
        ("small", put(*SPLIT, "pattern", {"Regex": r"\s+"}), r"and the pattern '\\s+'. Put the model's own"),
        ("small", put(*SPLIT, "pattern", {"Regex": "(a*)*b"}), "is neither a Unigram model nor a byte-level BPE"),
        ("small", put(*SPLIT, "behavior", "Removed"), "pretokenizers[0].behavior is 'Removed'; expected 'Isolated'"),
        ("small", put(*SPLIT, "invert", True), "pretokenizers[0].invert is True"),
        ("small", put("pre_tokenizer", "pretokenizers", 1, "use_regex", True), "pretokenizers[1].use_regex is True"),
        (
            "small",
            lambda b: b["pre_tokenizer"]["pretokenizers"].append({"type": "Digits", "individual_digits": True}),
            "pre_tokenizer.pretokenizers is a list of 3; expected a list of 2",
        ),
        ("small", put("pre_tokenizer", {"type": "Whitespace"}), "and the pattern None"),
        ("v3", put("pre_tokenizer", "pretokenizers", 1, "replacement", "_"), "[1].replacement is '_'; expected '\\u"),
        ("v3", put("pre_tokenizer", "pretokenizers", 1, "split", False), "[1].split is False; expected True"),
        ("v3", put("pre_tokenizer", "pretokenizers", 1, "prepend_scheme", "never"), "[1].prepend_scheme is 'never'"),
        ("small", put("decoder", {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}), "decoder.type is"),
        ("small", put("post_processor", {"type": "BertProcessing"}), "post_processor.type is 'BertProcessing'; expe"),
        ("small", put("version", "2.0"), "version is '2.0'; expected '1.0'"),
        ("small", put("plugin", 1), "tokenizer.json: plugin is 1; expected no such member"),
        ("small", put("truncation", {"max_length": 1 << 32, "strategy": "LongestFirst", "stride": 0}), "max_length"),
        ("small", put("padding", {"strategy": {"Fixed": 1 << 40}}), "padding is an object of 1 members; expected an"),
        ("small", put("model", "vocab", ["a"]), "model.vocab is ['a']; expected an object of 1 to 1048576 tokens"),
        ("small", put("model", "vocab", "a", 1 << 31), "model.vocab['a'] is 2147483648; expected an id from 0 to 10"),
        ("small", put("model", "vocab", "a", -1), "model.vocab['a'] is -1; expected an id"),
        ("small", put("model", "vocab", "a", True), "model.vocab['a'] is True; expected an id"),
        ("small", put("model", "vocab", "a", 5), "expected an object in which every token has an id of its own"),
        ("small", put("model", "vocab", "a" * 600, 900), "expected tokens of at most 512 characters"),
        ("small", put("model", "merges", {}), "model.merges is an object of 0 members; expected a list of at most"),
        ("small", put("model", "merges", 3, ["a"]), "model.merges[3] is ['a']; expected a pair of tokens"),
        ("small", put("model", "merges", 3, ["a", 1]), "model.merges[3] is ['a', 1]; expected a pair of tokens"),
        ("small", put("model", "merges", 3, "a b"), "model.merges[0] is ['h', 'e']; expected a merge in the form"),
        ("small", put("model", "merges", [["a" * 600, "b"]]), "expected tokens of at most 512 characters"),
        ("small", put("model", "merges", [["nowhere", "b"]]), "is not a usable tokenizer (Token `nowhere` out of vo"),
        ("v3", put("model", "vocab", 7, ["x"]), "model.vocab[7] is ['x']; expected a text and its score"),
        ("v3", put("model", "vocab", 7, [1, 1.0]), "model.vocab[7][0] is 1; expected a text"),
        ("v3", put("model", "vocab", 7, ["x", "y"]), "model.vocab[7][1] is 'y'; expected a number from -1e+06 to 1e"),
        ("v3", put("model", "vocab", 7, ["x", True]), "model.vocab[7][1] is True; expected a number"),
        ("v3", put("model", "vocab", 7, ["x", -1e300]), "model.vocab[7][1] is -1e+300; expected a number"),
        ("v3", put("model", "vocab", 7, ["x" * 65, -1.0]), "expected tokens of at most 64 characters"),
        ("v3", put("model", "vocab", 7, ["<s>", -1.0]), "expected a list in which no piece stands twice"),
        ("v3", put("model", "unk_id", None), "model.unk_id is None; expected a whole number"),
        ("v3", put("model", "unk_id", 900), "is not a usable tokenizer"),
        ("v3", put("normalizer", "precompiled_charsmap", "*"), "precompiled_charsmap is '*'; expected base64"),
        ("v3", put("normalizer", "precompiled_charsmap", ""), "expected a trie and what its ends stand for"),
        ("v3", put("normalizer", "precompiled_charsmap", 5), "precompiled_charsmap is 5; expected a text"),
        ("small", put("added_tokens", {}), "added_tokens is an object of 0 members; expected a list of 0 to 4096"),
        ("small", put("added_tokens", 0, "id", 1 << 31), "added_tokens[0].id is 2147483648; expected a whole number"),
        ("small", put("added_tokens", 0, "id", 502), "the added token '<|endoftext|>' has the id 502, and would get"),
        ("small", put("added_tokens", 0, "content", ""), "added_tokens[0].content is ''; expected a text of 1 to 25"),
        ("small", put("added_tokens", 0, "content", "x" * 300), "expected a text of 1 to 256 characters"),
        ("small", put("added_tokens", 0, "lstrip", 1), "added_tokens[0].lstrip is 1; expected true or false"),
        ("small", lambda b: b["added_tokens"][0].pop("special"), "added_tokens[0] is an object of 6 members; expect"),
        ("small", lambda b: b["model"]["vocab"].pop("~"), "has the id 503, and would get 502: its vocabulary has lo"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, kind, change, told):
    with pytest.raises(ModelDamaged) as error:
        opened(tmp_path, kind, change)
    assert told in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'tokenizer.json'}: ")
    assert len(str(error.value)) < 500


def template(*names, pair=("A", "B")):
    def pieces(listed):
        return [{"Sequence" if name in ("A", "B") else "SpecialToken": {"id": name, "type_id": 0}} for name in listed]

    marks = {name: n for name, n in (("<s>", 0), ("<pad>", 1), ("</s>", 2)) if name in (*names, *pair)}
    return {"type": "TemplateProcessing", "single": pieces(names), "pair": pieces(pair),
            "special_tokens": {t: {"id": t, "ids": [n], "tokens": [t]} for t, n in marks.items()}}  # fmt: skip


PAIR = ("<s>", "A", "</s>", "</s>", "B", "</s>")


@pytest.mark.parametrize(
    ("kind", "post_processor", "told"),
    [
        ("v3", template("A"), r"puts the tokens \[\] before a text, and this model was trained with <s> \(0\) there"),
        ("v3", template("<s>", "A"), r"puts the tokens \[\] after a text, .* with </s> \(2\) there\. Put the model'"),
        ("v3", template("<s>", "<s>", "A", "</s>"), r"puts the tokens \[0, 0\] before a text"),
        ("v3", template("<pad>", "A", "</s>"), r"puts the tokens \[1\] before a text"),
        ("v3", None, r"puts the tokens \[\] before a text"),
        ("reranker-v2", template("<s>", "A", "</s>", pair=("<s>", "A", "</s>", "B", "</s>")), "between two texts"),
        ("reranker-v2", template("<s>", "A", "</s>", pair=("A", "</s>", "</s>", "B", "</s>")), "before a pair"),
        ("reranker-v2", template("<s>", "A", "</s>", pair=(*PAIR, "</s>")), "after a pair"),
        ("reranker-v2", template("<s>", "A", "</s>", pair=("<s>", "B", "</s>", "</s>", "A", "</s>")), "a pair of te"),
        ("reranker-v2", template("<s>", "A", "</s>", pair=PAIR[:4]), "a pair of texts"),
        ("v3", template(*["<s>"] * 20, "A"), "single is a list of 21; expected a list of 0 to 16"),
    ],
)  # fmt: skip
def test_the_tokens_around_a_text_are_the_models(tmp_path, kind, post_processor, told):
    with pytest.raises(ModelDamaged, match=told):
        opened(tmp_path, kind, put("post_processor", post_processor))


def test_the_right_template_passes_and_a_model_without_pairs_has_any(tmp_path):
    opened(tmp_path, "reranker-v2", put("post_processor", template("<s>", "A", "</s>", pair=PAIR)))
    opened(tmp_path, "v3", put("post_processor", template("<s>", "A", "</s>")))


def test_a_template_of_a_token_that_there_is_not_is_refused(tmp_path):
    path = write(tmp_path / "tokenizer.json", BODIES["small"])
    with pytest.raises(ModelDamaged, match=r"puts the tokens \[\] after a text, .* with <end> \(None\) there"):
        Tokenizer.from_file(path, TokenizerSpec("qwen2", closing=("<end>",)))


def test_nano_without_its_closing_token_and_small_with_one_are_refused(tmp_path):
    with pytest.raises(ModelDamaged, match=r"trained with <\|end_of_text\|> \(513\) there"):
        opened(tmp_path, "nano", put("post_processor", None))
    body = copy.deepcopy(BODIES["small"])
    body["post_processor"] = template("A", "</s>")
    body["post_processor"]["special_tokens"]["</s>"]["ids"] = [503]
    with pytest.raises(ModelDamaged, match=r"puts the tokens \[503\] after a text, and this model was .* with none"):
        Tokenizer.from_file(write(tmp_path / "tokenizer.json", body), SPECS["small"].tokenizer)


def charsmap(change):
    """The small Unigram's file, its normaliser's table changed."""
    body = copy.deepcopy(BODIES["v3"])
    raw = bytearray(base64.b64decode(body["normalizer"]["precompiled_charsmap"]))
    raw = change(raw) or raw
    body["normalizer"]["precompiled_charsmap"] = base64.b64encode(raw).decode()
    return body


def cut_replacements(raw):
    """The table without what its ends stand for: the library then reads beyond it."""
    return raw[: 4 + int.from_bytes(raw[:4], "little")] + b"x\0"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda raw: raw[:6], "expected a trie"),
        (lambda raw: b"\xff\xff\xff\x7f" + raw[4:], "expected a trie"),
        (lambda raw: b"\x03\0\0\0" + raw[4:], "expected a trie"),
        (lambda raw: raw + b"x", "expected a trie and what its ends stand for, ended by NUL"),
        (lambda raw: raw + b"\xff\0", "expected replacements in UTF-8"),
        (lambda raw: raw + b"a" * 65 + b"\0", "that gives one character at most 64 bytes, not 65"),
    ],
)
def test_a_normalisers_table_that_cannot_be_is_refused(tmp_path, change, told):
    with pytest.raises(ModelDamaged, match=told):
        gate.read(write(tmp_path / "tokenizer.json", charsmap(change)))


def test_a_panic_of_the_library_at_any_call_is_our_error(tmp_path, capfd):
    path = write(tmp_path / "tokenizer.json", charsmap(cut_replacements))
    tokenizer, spec = Tokenizer.from_file(path, SPECS["v3"].tokenizer), resolve(SPECS["v3"], task="none")
    text = "ﬁ and ①"
    for call in (
        lambda: tokenizer.plain([text]),
        lambda: tokenizer.plain([text], 5),
        lambda: tokenizer.located(text),
        lambda: tokenizer.ids(text),
        lambda: tokenizer.encode(["good", text], spec),
        lambda: tokenizer.encode([text * 40_000], replace(spec, max_tokens=20)),
    ):
        with pytest.raises(
            ModelDamaged, match=r"json: cannot encode a text: it made the tokenizer library panic; the"
        ):
            call()
    assert tokenizer.plain(["good"])[0], "other texts are not affected"
    capfd.readouterr()  # the library tells of its panics on standard error


class PanicException(BaseException):
    """Called as the library's is, which cannot be imported."""


class Broken:
    """A tokenizer of the library that does nothing but fail."""

    def __init__(self, error):
        self.error = error

    def __getattr__(self, name):
        def fail(*args, **kwargs):
            raise self.error

        return fail


CALLS = {
    "encode": lambda t: t.encode(["a"], resolve(SPECS["nano"])),
    "plain": lambda t: t.plain(["a"]),
    "located": lambda t: t.located("a"),
    "decode": lambda t: t.decode([1]),
    "token_id": lambda t: t.token_id("a"),
    "vocabulary": lambda t: t.vocabulary(),
    "pair": lambda t: t.pair(),
    "ids": lambda t: t.ids("a"),
    "fingerprint": lambda t: t.fingerprint(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("error", [Exception("broken inside"), PanicException("broken inside")])
def test_every_call_translates_the_librarys_errors(call, error):
    tokenizer = Tokenizer(json.dumps(BODIES["nano"]), "where")
    tokenizer._tokenizer = Broken(error)
    with pytest.raises(ModelDamaged, match=r"where: cannot .*(\(broken inside\)|panic)"):
        call(tokenizer)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), TypeError("ours"), SystemExit(3)])
def test_every_other_error_is_left_as_it_is(call, error):
    tokenizer = Tokenizer(json.dumps(BODIES["nano"]), "where")
    tokenizer._tokenizer = Broken(error)
    with pytest.raises(type(error)):
        call(tokenizer)


def test_a_file_is_checked_once_and_again_after_a_change(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_FRESH", 0)
    checked, original = [], gate.check_body
    monkeypatch.setattr(gate, "check_body", lambda body, where: checked.append(where) or original(body, where))
    path = write(tmp_path / "tokenizer.json", BODIES["nano"])
    first, again = gate.read(path), gate.read(path)
    assert first == again
    assert len(checked) == 1
    stat = path.stat()
    path.write_bytes(path.read_bytes().replace(b'"dropout": null', b'"dropout": 0.12'))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    with pytest.raises(ModelDamaged, match="model.dropout is 0.12"):
        gate.read(path)


def test_ids_beyond_the_count_of_tokens_need_rows(tmp_path):
    body = copy.deepcopy(BODIES["small"])
    body["added_tokens"] = []
    body["model"]["vocab"]["zz"] = 900_000
    tokenizer = Tokenizer.from_file(write(tmp_path / "tokenizer.json", body), SPECS["small"].tokenizer)
    assert (tokenizer.vocab_size, tokenizer.rows) == (504, 900_001)


def used(path, spec):
    tokenizer = Tokenizer.from_file(path, spec)
    tokenizer.plain(["hello world  é e\u0301 <s></s><mask>", "x" * 5000], 50)
    tokenizer.decode(tokenizer.located("hello you")[0].tolist())
    tokenizer.fingerprint()


def test_three_hundred_damaged_files_raise_nothing_else(tmp_path, capfd):
    refused, path = 0, tmp_path / "tokenizer.json"
    for seed in range(300):
        kind = ("small", "nano", "v3", "reranker-v2")[seed % 4]
        path.write_bytes(damaged_json(BODIES[kind], random.Random(seed)))
        told = refusal(used, path, SPECS[kind].tokenizer)
        refused += told is not None
        assert len(told or "") < 1000
    assert 250 < refused < 300
    capfd.readouterr()
