"""registry: names, narrowing to the files at hand, and every request decided or refused with a sentence."""

from __future__ import annotations

import pytest

from jina_local import registry
from jina_local.errors import ModelDamaged, UsageError
from jina_local.spec import ModelSpec

NANO = registry.lookup("jina-embeddings-v5-text-nano").spec
SMALL = registry.lookup("v5-small").spec


def test_published_facts():
    assert (SMALL.dims[-1], SMALL.max_tokens, SMALL.pooling) == (1024, 32768, "last")
    assert (NANO.dims[-1], NANO.max_tokens, NANO.pooling) == (768, 8192, "last")
    assert dict(NANO.prompts) == {"query": "Query: ", "document": "Document: "}
    assert NANO.tasks == ("retrieval", "text-matching", "clustering", "classification")


@pytest.mark.parametrize("name", ["V5-Nano", "jinaai/jina-embeddings-v5-text-nano", "jina-embeddings-v5-nano"])
def test_lookup_takes_every_spelling(name):
    assert registry.lookup(name).spec is NANO


def test_unknown_model_names_the_known_ones():
    with pytest.raises(UsageError, match=r"unknown model 'v5-nan' \(did you mean 'v5-nano'\?\).*text-small"):
        registry.lookup("v5-nan")


def test_document_is_the_default_prompt_for_every_task():
    for task in NANO.tasks:
        assert registry.resolve(NANO, task=task).prefix == "Document: "
        assert registry.resolve(NANO, task=task, prompt_name="query").prefix == "Query: "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "retrival"}, r"unknown task 'retrival' \(did you mean 'retrieval'\?\).*clustering"),
        ({"prompt_name": "passage"}, "unknown prompt_name 'passage'.*query, document"),
        ({"truncate_dim": 0}, "truncate_dim 0 is not a trained width.*32, 64, 128, 256, 512, 768"),
        ({"truncate_dim": 2000}, "truncate_dim 2000 is not a trained width"),
        ({"truncate_dim": -32}, "truncate_dim -32"),
        ({"truncate_dim": 64.0}, "truncate_dim 64.0"),
        ({"truncate_dim": True}, "truncate_dim True"),
        ({"max_length": 0}, "max_length 0 is out of range: .* 1 to 8192"),
        ({"max_length": 8193}, "max_length 8193"),
        ({"precision": "int4"}, "unknown precision 'int4'.*float32, int8, uint8, binary, ubinary"),
        ({"precision": "int8", "normalize": False}, "fixed ranges for unit vectors"),
        ({"overflow": "ignore"}, "unknown overflow 'ignore'. Possible: truncate, error"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(UsageError, match=message):
        registry.resolve(NANO, **options)


def test_a_request_is_fully_decided():
    spec = registry.resolve(NANO, task="clustering", truncate_dim=128, precision="binary", max_length=99)
    assert (spec.task, spec.dim, spec.precision, spec.max_tokens) == ("clustering", 128, "binary", 99)
    assert spec.space == (NANO.name, "clustering", 128, "binary")


def test_no_default_task_means_the_caller_has_to_say():
    spec = registry.narrow(
        registry.lookup("v5-nano"), hidden=768, max_positions=8192, tasks=["clustering", "classification"]
    )
    assert spec.default_task is None
    with pytest.raises(UsageError, match="needs a task: one of clustering, classification"):
        registry.resolve(spec)


def test_narrow_keeps_what_the_files_can_serve():
    spec: ModelSpec = registry.narrow(registry.lookup("v5-nano"), hidden=96, max_positions=512, tasks=["clustering"])
    assert (spec.dims, spec.max_tokens, spec.tasks, spec.default_task) == (
        (32, 64, 96),
        512,
        ("clustering",),
        "clustering",
    )


def test_a_checkpoint_with_another_rope_base_is_another_model():
    assert registry.identify(architecture="qwen3", rope_theta=3.5e6).spec is SMALL
    assert registry.identify(architecture="qwen3", rope_theta=1e6).spec.name == "jina-reranker-v3"
    with pytest.raises(ModelDamaged, match="text-small has the RoPE base 3.5e"):
        registry.identify(architecture="qwen3", rope_theta=2e6)
