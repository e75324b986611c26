"""XLM-R's tokenizer -> GGUF vocabulary -> tokenizer.json: the same ids on every text; and llama.cpp's own ids."""

from __future__ import annotations

import copy
import ctypes
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from convert.gguf import engine, vocabulary
from jina_local.errors import ModelDamaged
from jina_local.formats.gguf import Header, read_header
from jina_local.text.gguf_vocabulary import CONTROL, FLAGS_KEY, NORMAL, UNKNOWN, UNUSED, tokenizer_json
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights import architecture

from .. import tiny, tiny_v3_and_rerankers

TEXTS = (
    "", " ", "Represent the document for retrieval: a text", "  two  spaces\tand a tab \n and a line ",
    "<s> marks </s> in <mask> a <unk> text <pad>", "naïve café Ångström e\u0301 \u00e9",
    "日本語のテキスト हिन्दी العربية",
    "a\u00a0b\u2003c\u200d🚀", "\u2581 \u2581x", "never seen: ꙮ ꙮꙮ", "?????? ``````", "[PAD700]",
)  # fmt: skip
SPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}


@pytest.fixture(scope="module")
def body():
    """The small tokenizer, not to be changed."""
    return json.loads(tiny_v3_and_rerankers.unigram(tiny._TRAINING).to_str())


@pytest.fixture(scope="module")
def real():
    """tokenizer.json of XLM-R itself."""
    path = tiny.SHARED / "tokenizers" / "xlm-roberta" / "tokenizer.json.xz"
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return file.read()


def read(body: dict, rows: int | None = None, **config: object) -> vocabulary.Vocabulary:
    rows = rows or len(body["model"]["vocab"]) + 20
    arch = architecture.Architecture("bert", 32, 1, 2, 2, 16, 32, rows, 1e-5, 0.0, 64, labels=1)
    raw = json.dumps(body)
    return vocabulary.read(Tokenizer(raw, "tokenizer.json"), raw.encode(), arch, config)


def write(vocab: vocabulary.Vocabulary, path: Path) -> Path:
    """A file of which llama.cpp opens the vocabulary."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed: pip install 'jina_local[convert]'")
    writer = gguf.GGUFWriter(path, "bert")
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_feed_forward_length):
        add(32)
    writer.add_block_count(1)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-5)
    vocab.write(writer)
    writer.add_tensor("token_embd.weight", np.zeros((len(vocab.tokens), 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def changed(header: Header, **keys: object) -> Header:
    found = {**header.keys, **{f"tokenizer.ggml.{name}": value for name, value in keys.items()}}
    return Header(Path("model.gguf"), {k: v for k, v in found.items() if v is not None}, {}, 0)


def same(ours: Tokenizer, rebuilt: str) -> None:
    theirs = Tokenizer(rebuilt, "rebuilt")
    for text in TEXTS:
        assert theirs.ids(text) == ours.ids(text), text
    assert theirs.fingerprint() == ours.fingerprint()


def same_with_pairs(body: dict, rebuilt: str) -> None:
    same(Tokenizer(json.dumps(body), "original"), rebuilt)
    first, second = (tokenizers.Tokenizer.from_str(text) for text in (json.dumps(body), rebuilt))
    for pair in (("a query", "a document <mask>"), ("", "x")):
        assert second.encode(*pair).ids == first.encode(*pair).ids


def test_the_rebuilt_tokenizer_gives_the_same_ids(body, tmp_path):
    vocab = read(body)
    header = read_header(write(vocab, tmp_path / "v.gguf"))
    same_with_pairs(body, tokenizer_json(header))
    words = Tokenizer(json.dumps(body), "original").vocab_size
    marks = {"<s>": CONTROL, "<pad>": CONTROL, "</s>": CONTROL, "<unk>": UNKNOWN, "<mask>": CONTROL}
    for number, token in enumerate(vocab.tokens):
        assert vocab.types[number] == (marks.get(token, NORMAL) if number < words else UNUSED), token
    assert vocab.tokens[words:] == [f"[PAD{n}]" for n in range(words, len(vocab.tokens))]
    place = vocab.tokens.index
    for name, token in {"bos": "<s>", "eos": "</s>", "unknown": "<unk>", "seperator": "</s>", "padding": "<pad>",
                        "cls": "<s>", "mask": "<mask>"}.items():  # fmt: skip
        assert header.keys[f"tokenizer.ggml.{name}_token_id"] == place(token)
    for name in ("bos_token", "eos_token", "sep_token", "space_prefix"):
        assert header.keys[f"tokenizer.ggml.add_{name}"] is True
    assert header.keys["tokenizer.ggml.remove_extra_whitespaces"] is True
    assert (header.text("tokenizer.ggml.model"), header.text("tokenizer.ggml.pre")) == ("t5", "default")
    assert header.keys["tokenizer.ggml.token_type_count"] == 1
    assert header.keys["tokenizer.ggml.scores"][words:] == [-10000.0] * (len(vocab.tokens) - words)


def variants(body: dict) -> dict[str, dict]:
    """Other ways in which copies of the same tokenizer are written."""
    out = {}
    plain = body["normalizer"]
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    out["spaces"] = body | {"normalizer": {"type": "Sequence", "normalizers": [*([plain] if plain else []), spaces]}}
    out["old metaspace"] = copy.deepcopy(body)
    out["old metaspace"]["pre_tokenizer"]["pretokenizers"][1] = {
        "type": "Metaspace", "replacement": "\u2581", "add_prefix_space": True, "str_rep": "\u2581",
    }  # fmt: skip
    out["roberta"] = body | {
        "post_processor": {"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 2], "trim_offsets": True,
                           "add_prefix_space": True}
    }  # fmt: skip
    return out


@pytest.mark.parametrize("which", ["spaces", "old metaspace", "roberta"])
def test_other_ways_to_write_the_same_are_read(body, which, tmp_path):
    other = variants(body)[which]
    same_with_pairs(other, tokenizer_json(read_header(write(read(other), tmp_path / "v.gguf"))))


def test_one_token_between_two_texts_stays_one(body, tmp_path):
    other = copy.deepcopy(body)
    del other["post_processor"]["pair"][2]
    vocab = read(other)
    assert vocab.pieces is not None
    assert not vocab.pieces.between
    same_with_pairs(other, tokenizer_json(read_header(write(vocab, tmp_path / "v.gguf"))))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda b: b["model"].update(byte_fallback=True), "byte_fallback True instead of False"),
        (lambda b: b.update(normalizer={"type": "NFKC"}), r"normaliser \['NFKC'\]"),
        (lambda b: b.update(pre_tokenizer=SPACE), "steps"),
        (lambda b: b["pre_tokenizer"]["pretokenizers"][1].update(prepend_scheme="first"), "mark of a space"),
        (lambda b: b.update(post_processor=None), "puts no token before a text"),
        (lambda b: b["post_processor"]["pair"].pop(), "puts two texts together as <s> A </s> </s> B,"),
        (lambda b: b["added_tokens"].pop(3), "'<unk>', which stands for unknown text, is not a special token"),
        (lambda b: b["added_tokens"][3].update(special=False), "is not a special token"),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_compute_is_refused(body, change, told):
    other = copy.deepcopy(body)
    change(other)
    with pytest.raises(ModelDamaged, match=told) as error:
        read(other)
    assert str(error.value).startswith("tokenizer.json: ")


def test_more_tokens_than_rows_are_refused(body):
    with pytest.raises(ModelDamaged, match="and the token table has 50 rows"):
        read(body, rows=50)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"scores": None}, "does not have one score for each token"),
        ({"scores": [0.0]}, "does not have one score for each token"),
        ({"add_bos_token": None}, "tokenizer.ggml.add_bos_token is missing or false.*tokenizer.json beside the file"),
        ({"add_eos_token": False}, "tokenizer.ggml.add_eos_token is missing or false"),
        ({"add_space_prefix": False}, "tokenizer.ggml.add_space_prefix is missing or false"),
        ({"unknown_token_id": None}, "needs a token 'unknown'"),
        ({"precompiled_charsmap": "text"}, "precompiled_charsmap is not an array of bytes"),
        ({"pre": "default", "model": "spm"}, "read here is 'gpt2' with .*, and 't5'"),
    ],
)
def test_a_damaged_vocabulary_is_refused(body, tmp_path, keys, told):
    header = read_header(write(read(body), tmp_path / "v.gguf"))
    with pytest.raises(ModelDamaged, match=told) as error:
        tokenizer_json(changed(header, **keys))
    assert str(error.value).startswith("model.gguf: ")


def test_a_token_type_of_another_kind_is_refused(body, tmp_path):
    header = read_header(write(read(body), tmp_path / "v.gguf"))
    with pytest.raises(ModelDamaged, match="token 7 has the type 6"):
        types = list(header.keys["tokenizer.ggml.token_type"])
        tokenizer_json(changed(header, token_type=[*types[:7], 6, *types[8:]]))


def test_a_file_of_llama_cpps_own_converter_has_the_mask_that_takes_a_space(body, tmp_path):
    header = read_header(write(read(body), tmp_path / "v.gguf"))
    del header.keys[FLAGS_KEY]
    rebuilt = json.loads(tokenizer_json(header))
    assert [t["content"] for t in rebuilt["added_tokens"] if t["lstrip"]] == ["<mask>"]


@pytest.mark.slow
@pytest.mark.llama
def test_the_real_vocabulary_is_held_and_llama_cpp_gives_its_ids(real, tmp_path):
    tokenizer = Tokenizer(real, "real")
    arch = architecture.Architecture("bert", 32, 1, 2, 2, 16, 32, 250002, 1e-5, 0.0, 64, labels=1)
    vocab = vocabulary.read(tokenizer, real.encode(), arch, {})
    assert vocab.pieces is not None
    assert len(vocab.pieces.charsmap) == 237539
    path = write(vocab, tmp_path / "v.gguf")
    same(tokenizer, tokenizer_json(read_header(path)))
    listed = [json.loads(line) for line in lines("udhr")[::23]]
    assert len({entry["lang"] for entry in listed}) > 300
    other = compare(path, tokenizer, [entry["text"][:600] for entry in listed])
    # Equals on repeated signs may be taken in another order (llama.cpp PR 13693), and some signs be no white space.
    assert len(other) <= len(listed) // 200, other[:5]


def lines(name: str) -> list[str]:
    with lzma.open(tiny.SHARED / "corpus" / f"{name}.jsonl.xz", "rt", encoding="utf-8") as file:
        return list(file)


@pytest.mark.llama
def test_llama_cpp_reads_the_small_vocabulary_as_we_do(body, tmp_path):
    path = write(read(body), tmp_path / "v.gguf")
    # Without the normaliser's table llama.cpp knows no white space but the plain one.
    texts = [text for text in TEXTS if not set(text) & set("\t\n\u00a0\u2003\u2581")]
    assert compare(path, Tokenizer(json.dumps(body), "small"), texts) == []


def compare(path: Path, tokenizer: Tokenizer, texts: list[str]) -> list[str]:
    """The texts for which llama.cpp's own tokenizer gives other ids than ours."""
    llama = engine.engine()
    params = llama.llama_model_default_params()
    params.vocab_only = True
    other = []
    with engine.heard():
        model = llama.llama_model_load_from_file(str(path).encode(), params)
        assert model, "llama.cpp does not read this vocabulary"
        vocab = llama.llama_model_get_vocab(model)
        for text in texts:
            raw = text.encode()
            ids = (ctypes.c_int32 * (len(raw) + 8))()
            count = llama.llama_tokenize(vocab, raw, len(raw), ids, len(ids), True, True)
            if list(ids[:count]) != tokenizer.ids(text):
                other.append(text)
        llama.llama_model_free(model)
    return other
