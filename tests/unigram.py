"""A small Unigram tokenizer in the shape of XLM-R's, and the character map that its normaliser has, both built here.

The published map covers all of NFKC in 230 kB of somebody's data; this one has a few dozen rules of its own, in the
same binary format (a little-endian length, a double-array trie over UTF-8 bytes, the replacements ended by NUL).
"""

from __future__ import annotations

import struct
import unicodedata
from collections import Counter
from collections.abc import Iterable
from itertools import count

import tokenizers

_PIECES = 600
_COMPATIBLE = "ﬁﬀﬂﬃ①②③½¼²³™…ＡＢＣＤａｂｃｄ０１２３，．！？（）ﾊﾟｱ㈱℃Ⅳ\u00a0\u3000\u2003\u2009"
_COMBINED = "éèêàâçñöüäïîåÅÖÜÄÉçš"
_SPACES = "\t\n\r\u200b\u200e\ufeff"
_GONE = "\x01\x07\x1b\x7f"


def rules() -> dict[str, str]:
    """What the normaliser replaces: compatibility forms, letters with marks apart, odd spaces, control characters."""
    found = {c: unicodedata.normalize("NFKC", c) for c in _COMPATIBLE}
    found |= {unicodedata.normalize("NFD", c): c for c in _COMBINED}
    return found | dict.fromkeys(_SPACES, " ") | dict.fromkeys(_GONE, "")


def character_map(replaced: dict[str, str]) -> bytes:
    """The rules as sentencepiece stores them. No key may begin another."""
    blob, root = bytearray(), {}
    for key in sorted(replaced):
        node: dict[int, object] = root
        for byte in key.encode():
            node = node.setdefault(byte, {})  # type: ignore[assignment]
        node[0] = len(blob)
        blob += replaced[key].encode() + b"\0"
    units, bases = {0: 0}, {0}
    todo = [(0, root)]
    while todo:
        at, node = todo.pop()
        base = next(b for b in count(1) if b not in bases and all(b ^ byte not in units for byte in node))
        bases.add(base)
        # A unit: the byte it is reached by, whether an end follows (bit 8), how far its children are (from bit 10).
        units[at] |= (at ^ base) << 10 | (0 in node) << 8
        for byte, below in node.items():
            if byte == 0:
                units[base] = 1 << 31 | below  # type: ignore[operator]
            else:
                units[base ^ byte] = byte
                todo.append((base ^ byte, below))  # type: ignore[arg-type]
    size = (max(*units, *bases) | 0xFF) + 1
    trie = struct.pack(f"<{size}I", *(units.get(i, 0) for i in range(size)))
    return struct.pack("<I", len(trie)) + trie + bytes(blob)


def pieces(texts: Iterable[str]) -> list[tuple[str, float]]:
    """The control tokens, every character of the texts and of ASCII, what is frequent in words, the mask."""
    words = Counter("▁" + word for text in texts for word in text.split())
    characters = {c for word in words for c in word} | {chr(c) for c in range(33, 127)}
    found: Counter[str] = Counter()
    for word, n in words.items():
        for start in range(len(word)):
            for end in range(start + 2, min(start + 9, len(word) + 1)):
                found[word[start:end]] += n * (end - start)
    often = sorted(found, key=lambda piece: (-found[piece], piece))[: _PIECES - len(characters)]
    control = [(name, 0.0) for name in ("<s>", "<pad>", "</s>", "<unk>")]
    scored = [(piece, -4 - 0.011 * i) for i, piece in enumerate(often)]
    single = [(c, -5 - 0.013 * i) for i, c in enumerate(sorted(characters, key=lambda c: (c != "▁", c)))]
    return [*control, *sorted(scored + single, key=lambda pair: -pair[1]), ("<mask>", 0.0)]


def tokenizer(texts: Iterable[str]) -> tokenizers.Tokenizer:
    """XLM-R's normaliser, split, template and special ids around a vocabulary of about 600 pieces."""
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

    listed = pieces(texts)
    tok = tokenizers.Tokenizer(models.Unigram(listed, unk_id=3, byte_fallback=False))
    tok.normalizer = normalizers.Precompiled(character_map(rules()))
    metaspace = {"replacement": "▁", "prepend_scheme": "always"}
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**metaspace)]
    )
    tok.decoder = decoders.Metaspace(**metaspace)
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    names = ("<s>", "<pad>", "</s>", "<unk>")
    tok.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tok.add_special_tokens([AddedToken("<mask>", special=True, normalized=False, lstrip=True)])
    return tok
