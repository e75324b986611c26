"""pico's own vocabulary: byte-level BPE behind the pre-tokenizer that llama.cpp calls `jina-v5-nano`."""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

END = "<|end_of_text|>"
_SPECIALS = ("<|begin_of_text|>", END, "<|mask|>")
# The split of Llama 3 (llama.cpp: LLAMA_VOCAB_PRE_TYPE_LLAMA3): contractions, words with one sign or space before
# them, up to three digits, other signs, line ends, white space.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def end_of(tokenizer: tokenizers.Tokenizer) -> int:
    """The id that ends every text."""
    found = tokenizer.token_to_id(END)
    if found is None:
        raise ValueError(f"the vocabulary has no {END}")
    return found


def train(texts: Iterable[str], size: int) -> tokenizers.Tokenizer:
    """A tokenizer of `size` tokens, special ones last, that appends END to every text and begins with nothing."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))  # as llama.cpp has it for this split
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=24,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in _SPECIALS])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"$A {END}",
                pair=f"$A {END} $B:1 {END}:1",
                special_tokens=[(END, tokenizer.token_to_id(END))],
            ),
        ]
    )
    return tokenizer
