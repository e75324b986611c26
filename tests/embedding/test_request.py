"""A caller's words for an embedding, resolved: the words of Jina's API, and late chunking."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jina_local import registry
from jina_local.embedding.request import resolve
from jina_local.errors import UsageError

V5, V3 = (registry.lookup(name).spec for name in ("v5-nano", "v3"))


@pytest.mark.parametrize(
    ("word", "prompt"),
    [("retrieval.query", "query"), ("retrieval.passage", "document"), ("retrieval.document", "document")],
)
def test_the_words_of_jinas_api_are_retrieval_with_a_prompt(word, prompt):
    plain = resolve(V5, task="retrieval", prompt_name=prompt)
    assert resolve(V5, task=word) == resolve(V5, task=word, prompt_name=prompt) == plain
    other = "query" if prompt == "document" else "document"
    with pytest.raises(UsageError, match=f"means 'retrieval' with prompt_name '{prompt}', but prompt_name '{other}'"):
        resolve(V5, task=word, prompt_name=other)
    with pytest.raises(UsageError, match="unknown task"):
        resolve(replace(V5, tasks=("clustering",)), task=word)


def test_a_document_to_be_retrieved_is_v3s_passage():
    assert resolve(V3, task="retrieval.document") == resolve(V3, task="retrieval.passage")


def test_late_chunking_cuts_nothing_and_takes_documents():
    spec = resolve(V3, late_chunking=True)
    assert (spec.task, spec.overflow) == ("retrieval.passage", "error")
    assert resolve(V3, late_chunking=True, overflow="error") == spec
    with pytest.raises(UsageError, match="late chunking cuts nothing"):
        resolve(V3, late_chunking=True, overflow="truncate")
    with pytest.raises(UsageError, match="has no late chunking: its vector is the state of a text's last token"):
        resolve(V5, late_chunking=True)
