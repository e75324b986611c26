"""tokenizer.json -> GGUF vocabulary -> tokenizer.json: the same ids on every text, or a refusal that says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convert.gguf import vocabulary
from jina_local.errors import ModelDamaged
from jina_local.formats.gguf import Header
from jina_local.text.gguf_vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED, tokenizer_json
from jina_local.text.tokenizer import Tokenizer
from jina_local.weights import architecture

from .. import tiny

KINDS = ("small", "nano")
TEXTS = (
    "", " ", "Query: what is it?", "e\u0301 and \u00e9 and \u1e9b\u0323", "1234567 3.14159",
    "don't WE'RE  x\r\n\r\n y",
    "<|endoftext|> <|im_end|><|end_of_text|><|begin_of_text|>", "日本語のテキスト हिन्दी العربية", "a\u0000b\u200d🚀",
    "[PAD610] [PAD 1]", "   leading and trailing   ",
)  # fmt: skip


def body_of(kind: str) -> dict:
    return json.loads(tiny.tokenizer(kind).to_str())


def read(kind: str, body: dict, rows: int = 640, **config: object) -> vocabulary.Vocabulary:
    sizes = tiny.SIZES[kind]
    arch = architecture.from_config({**tiny.CONFIGS[kind], **sizes, "vocab_size": rows})
    raw = json.dumps(body)
    return vocabulary.read(Tokenizer(raw, "tokenizer.json"), raw.encode(), arch, config)


def header_of(vocab: vocabulary.Vocabulary, **changed: object) -> Header:
    keys: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": vocab.pre,
        "tokenizer.ggml.tokens": [token.encode() for token in vocab.tokens],
        "tokenizer.ggml.token_type": vocab.types,
        "tokenizer.ggml.merges": [merge.encode() for merge in vocab.merges],
        "tokenizer.ggml.add_bos_token": vocab.add_bos,
        **{f"tokenizer.ggml.{name}_token_id": number for name, number in vocab.ids.items()},
        **({"tokenizer.ggml.add_eos_token": True} if vocab.add_eos else {}),
        **({"jina_local.tokenizer.added_token_flags": json.dumps(vocab.flags)} if vocab.flags else {}),
    }
    keys |= {f"tokenizer.ggml.{key}": value for key, value in changed.items()}
    return Header(Path("model.gguf"), {k: v for k, v in keys.items() if v is not None}, {}, 0)


def both(kind: str, body: dict) -> tuple[Tokenizer, Tokenizer]:
    rebuilt = tokenizer_json(header_of(read(kind, body)))
    return Tokenizer(json.dumps(body), "original"), Tokenizer(rebuilt, "rebuilt")


@pytest.mark.parametrize("kind", KINDS)
def test_the_rebuilt_tokenizer_gives_the_same_ids(kind):
    original, rebuilt = both(kind, body_of(kind))
    for text in TEXTS:
        assert rebuilt.ids(text) == original.ids(text), text
    assert rebuilt.fingerprint() == original.fingerprint()
    assert (rebuilt.opening, rebuilt.closing) == (original.opening, original.closing)
    assert rebuilt.vocab_size == original.vocab_size


def test_what_a_small_tokenizer_becomes():
    tok = tiny.tokenizer("small")
    words, all_ = tok.get_vocab_size(with_added_tokens=False), tok.get_vocab_size()
    start, end = tok.token_to_id("<|im_start|>"), tok.token_to_id("<|im_end|>")
    vocab = read("small", body_of("small"), bos_token_id=start, eos_token_id=end, pad_token="<|endoftext|>")
    assert (vocab.pre, vocab.add_bos, vocab.add_eos) == ("qwen2", False, False)
    assert vocab.ids == {"bos": start, "eos": end, "padding": tok.token_to_id("<|endoftext|>")}
    assert all_ == words + 3
    assert vocab.types == [NORMAL] * words + [CONTROL] * 3 + [UNUSED] * (640 - all_)
    assert vocab.tokens[:all_] == [tok.id_to_token(n) for n in range(all_)]
    assert vocab.tokens[all_] == f"[PAD{all_}]"
    assert len(vocab.tokens) == 640


def test_what_a_nano_tokenizer_becomes():
    end = tiny.tokenizer("nano").token_to_id("<|end_of_text|>")
    vocab = read("nano", body_of("nano"), eos_token_id=3, pad_token_id=end)
    assert (vocab.pre, vocab.add_bos, vocab.add_eos) == ("jina-v5-nano", False, True)
    assert vocab.ids["eos"] == end, "the token that the template appends, whatever the config calls eos"
    assert vocab.ids["padding"] == end


def test_a_qwen_template_that_appends_is_kept():
    body = body_of("small")
    end = next(t for t in body["added_tokens"] if t["content"] == "<|endoftext|>")
    template = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [end["id"]], "tokens": ["<|endoftext|>"]}},
    }
    body["post_processor"] = template
    assert read("small", body).add_eos
    original, rebuilt = both("small", body)
    assert rebuilt.ids("a text") == original.ids("a text")
    assert rebuilt.closing == [end["id"]]


def test_flags_that_gguf_has_no_place_for_survive():
    body = body_of("nano")
    body["added_tokens"][2] |= {"lstrip": True, "special": False}
    vocab = read("nano", body)
    number = body["added_tokens"][2]["id"]
    assert vocab.types[number] == USER_DEFINED
    assert vocab.flags == {str(number): {"lstrip": True}}
    original, rebuilt = both("nano", body)
    text = "before   <|reserved_special_token_0|> after"
    assert rebuilt.ids(text) == original.ids(text)
    assert original.ids(text) != both("nano", body_of("nano"))[1].ids(text), "the flag has to matter here"


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("small", lambda b: b.update(normalizer=None), "normaliser None instead of 'NFC'"),
        ("nano", lambda b: b.update(normalizer={"type": "NFC"}), "normaliser 'NFC' instead of None"),
        ("nano", lambda b: b["model"].update(ignore_merges=False), "ignore_merges False instead of True"),
        (
            "small",
            lambda b: b["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\s+"}),
            r"not the tokenizer that llama.cpp calls 'qwen2': it has the split pattern '\\s+' instead of",
        ),
        ("nano", lambda b: b.update(pre_tokenizer=b["pre_tokenizer"]["pretokenizers"][1]), "the split pattern None"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_read_differently_is_refused(kind, change, told):
    body = body_of(kind)
    change(body)
    with pytest.raises(ModelDamaged) as error:
        read(kind, body)
    assert told in str(error.value)


def test_tokens_beyond_the_table_and_ids_beyond_it_are_refused():
    with pytest.raises(ModelDamaged, match=r"has the id 300, and the token table has 300 rows"):
        read("small", body_of("small"), rows=300)
    with pytest.raises(ModelDamaged, match="the config's id of the eos token is 9999; not a row of the token table"):
        read("small", body_of("small"), eos_token_id=9999)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"pre": "gpt-4o"},
            "has the tokenizer 'gpt2' with the pre-tokenizer 'gpt-4o'; read here is 'gpt2' with qwen2",
        ),
        ({"model": "llama"}, "Put the model's tokenizer.json beside the file"),
        ({"token_type": [1, 2]}, "does not have one type for each token"),
        ({"tokens": [b"a"] * 640}, "has the same text twice"),
        ({"tokens": [b"\xff%d" % n for n in range(640)]}, "is not a list of texts in UTF-8"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"eos_token_id": 640}, "needs a token 'eos', and tokenizer.ggml.eos_token_id is 640"),
        ({"add_eos_token": 1}, "add_eos_token is 1; expected true or false"),
        ({"token_type": [6] * 640}, "token 0 has the type 6"),
    ],
)
def test_a_damaged_vocabulary_is_refused(changed, told):
    header = header_of(read("nano", body_of("nano")), **changed)
    with pytest.raises(ModelDamaged) as error:
        tokenizer_json(header)
    assert told in str(error.value)
    assert str(error.value).startswith("model.gguf: ")


def test_without_a_word_on_bos_llama_bpe_adds_it_as_llama_cpp_does():
    begin = tiny.tokenizer("nano").token_to_id("<|begin_of_text|>")
    vocab = read("nano", body_of("nano"), bos_token_id=begin)
    rebuilt = Tokenizer(tokenizer_json(header_of(vocab, pre="llama-bpe", add_bos_token=None)), "rebuilt")
    assert rebuilt.opening == [begin]


def hostile() -> list[str]:
    """The strings of blns and unicode.json that are valid Unicode, the repeated ones cut to 100,000 characters."""
    body = json.loads((tiny.SHARED / "nasty" / "unicode.json").read_text(encoding="utf-8"))
    texts = [entry["text"] for entry in body["texts"] if "text" in entry]
    texts += ["".join(map(chr, entry["codepoints"])) for entry in body["texts"] if "codepoints" in entry]
    texts += [(entry["repeat"][0] * entry["repeat"][1])[:100_000] for entry in body["big"]]
    texts += json.loads((tiny.SHARED / "nasty" / "blns.json").read_text(encoding="utf-8"))
    return [text for text in texts if not any(0xD800 <= ord(c) <= 0xDFFF for c in text)]


@pytest.mark.sampled
@pytest.mark.skipif(not tiny.SHARED.exists(), reason="needs ../shared/data, which is not beside this checkout")
@pytest.mark.parametrize("kind", KINDS)
def test_the_real_vocabularies_come_back_whole(kind):
    raw = tiny.real_tokenizer(kind)
    config = {**tiny.CONFIGS[kind], **tiny.FULL[kind]}
    original = Tokenizer(raw, "tokenizer.json")
    vocab = vocabulary.read(original, raw.encode(), architecture.from_config(config), config)
    rebuilt = Tokenizer(tokenizer_json(header_of(vocab)), "rebuilt")
    assert rebuilt.fingerprint() == original.fingerprint()
    assert rebuilt.vocab_size == original.vocab_size
    fixtures = json.loads((tiny.SHARED / "tokenizers" / "fixtures.json").read_text(encoding="utf-8"))
    name = {"small": "qwen3", "nano": "llama3"}[kind]
    assert len(fixtures[name]) == 47
    for case in [*fixtures[name], {"text": fixtures["chktxt"], "ids": fixtures["chktxt_ids"][name]}]:
        assert rebuilt.ids(case["text"]) == case["ids"] + original.closing, case["text"]
    texts = hostile()
    assert len(texts) > 550
    for text in texts:
        assert rebuilt.ids(text) == original.ids(text), text[:100]
