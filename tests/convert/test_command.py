"""What the converter's command line says to words that it does not know. No file is opened."""

from __future__ import annotations

import pytest

from convert.__main__ import main
from jina_local.errors import UsageError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", r"required: COMMAND\. See `python -m convert --help`"),
        ("gguff SRC OUT", r"invalid choice: 'gguff' .*\(did you mean 'gguf'\?\)\. See `python -m convert --help`"),
        (
            "gguf SRC OUT --tpye Q8_0",
            r"unknown option --tpye \(did you mean '--type'\?\)\. See .* convert gguf",
        ),
        (
            "mlx SRC OUT --bits 7",
            r"invalid choice: 7 \(choose from 4, 5, 6, 8, 16, 32\)\. See",
        ),
        ("merge SRC OUT more", r"unexpected argument 'more'\. See `python -m convert merge --help`"),
        ("verify OUT", r"required: --against\. See `python -m convert verify --help`"),
        ("mlx SRC OUT --bit 8", r"unknown option --bit \(did you mean '--bits'\?\)"),
    ],
)
def test_a_wrong_word_is_named_with_the_one_that_is_near(given, message):
    with pytest.raises(UsageError, match=message):
        main(given.split())
