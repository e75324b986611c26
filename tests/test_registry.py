"""registry: names, narrowing to the files at hand, and every request decided or refused with a sentence."""

from __future__ import annotations

import pytest

from jina_local import registry
from jina_local.embedding.request import resolve
from jina_local.errors import ModelDamaged, UsageError
from jina_local.spec import ModelSpec
from jina_local.weights import projector

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
        assert resolve(NANO, task=task).prefix == "Document: "
        assert resolve(NANO, task=task, prompt_name="query").prefix == "Query: "


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
        resolve(NANO, **options)


def test_a_request_is_fully_decided():
    spec = resolve(NANO, task="clustering", truncate_dim=128, precision="binary", max_length=99)
    assert (spec.task, spec.dim, spec.precision, spec.max_tokens) == ("clustering", 128, "binary", 99)
    assert spec.space == (NANO.name, "clustering", 128, "binary")


def test_no_default_task_means_the_caller_has_to_say():
    spec = registry.narrow(
        registry.lookup("v5-nano"), hidden=768, max_positions=8192, tasks=["clustering", "classification"]
    )
    assert spec.default_task is None
    with pytest.raises(UsageError, match="needs a task: one of clustering, classification"):
        resolve(spec)


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


V3 = registry.lookup("v3").spec
QUERY_TEXT = "Represent the query for retrieving evidence documents: "
PASSAGE_TEXT = "Represent the document for retrieval: "


def test_published_facts_of_v3_and_the_rerankers():
    assert (V3.dims, V3.max_tokens, V3.pooling) == ((32, 64, 128, 256, 512, 768, 1024), 8192, "mean")
    assert (V3.default_task, V3.default_prompt, V3.late_chunking, V3.scoring) == (None, None, True, None)
    listwise, pairwise = (registry.lookup(name).spec for name in ("reranker-v3", "reranker-v2"))
    assert (listwise.scoring, listwise.tasks, listwise.dims, listwise.max_tokens) == (
        "listwise",
        ("rerank",),
        (512,),
        131072,
    )
    assert (pairwise.scoring, pairwise.tasks, pairwise.max_tokens) == ("pairwise", ("rerank",), 1024)
    assert not any(row.spec.late_chunking for row in registry.PUBLISHED if row.spec is not V3)
    assert {row.spec.license for row in registry.PUBLISHED if not row.bundled} == {"CC BY-NC 4.0"}


@pytest.mark.parametrize(
    ("task", "prompt", "chosen", "prefix"),
    [
        ("retrieval.query", None, "retrieval.query", QUERY_TEXT),
        ("retrieval.passage", None, "retrieval.passage", PASSAGE_TEXT),
        ("separation", None, "separation", ""),
        ("classification", None, "classification", ""),
        ("text-matching", None, "text-matching", ""),
        ("none", None, "none", ""),
        # The same said in the words of other models
        ("retrieval", None, "retrieval.passage", PASSAGE_TEXT),
        ("retrieval", "query", "retrieval.query", QUERY_TEXT),
        ("retrieval", "document", "retrieval.passage", PASSAGE_TEXT),
        ("retrieval", "passage", "retrieval.passage", PASSAGE_TEXT),
        ("clustering", None, "separation", ""),
        (None, "query", "retrieval.query", QUERY_TEXT),
        (None, "document", "retrieval.passage", PASSAGE_TEXT),
        # The same said twice
        ("retrieval.query", "query", "retrieval.query", QUERY_TEXT),
        ("retrieval.query", "retrieval.query", "retrieval.query", QUERY_TEXT),
        ("retrieval.passage", "document", "retrieval.passage", PASSAGE_TEXT),
    ],
)
def test_v3s_words(task, prompt, chosen, prefix):
    found = resolve(V3, task=task, prompt_name=prompt)
    assert (found.task, found.prefix, found.pooling, found.dim) == (chosen, prefix, "mean", 1024)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"needs a task: one of retrieval.query, .* \('none': the base without an adapter\)"),
        ({"prompt_name": "text"}, "needs a task"),
        (
            {"task": "retrieval", "prompt_name": "text"},
            "does not go with task 'retrieval'.* document, passage, query",
        ),
        ({"task": "retrieval.query", "prompt_name": "document"}, "prompt_name 'document' does not go with task"),
        ({"task": "separation", "prompt_name": "query"}, "does not go with task 'separation'"),
        ({"task": "clustering", "prompt_name": "query"}, "does not go with task 'clustering'"),
        ({"task": "none", "prompt_name": "query"}, "does not go with task 'none'"),
        ({"task": "retrieval.qeury"}, r"unknown task 'retrieval.qeury' \(did you mean 'retrieval.query'\?\)"),
        ({"task": "rerank"}, "unknown task 'rerank'"),
        ({"task": "text-matching", "truncate_dim": 100}, "truncate_dim 100 is not a trained width"),
    ],
)
def test_refusals_of_v3(options, message):
    with pytest.raises(UsageError, match=message):
        resolve(V3, **options)


def test_a_word_for_a_task_that_the_files_lack_is_refused():
    some = registry.narrow(
        registry.lookup("v3"), hidden=1024, max_positions=8194, tasks=["separation", "retrieval.query"]
    )
    assert (some.tasks, some.default_task, some.max_tokens) == (("retrieval.query", "separation"), None, 8192)
    assert resolve(some, task="clustering").task == "separation"
    assert resolve(some, task="retrieval", prompt_name="query").task == "retrieval.query"
    with pytest.raises(UsageError, match="unknown task 'retrieval'"):
        resolve(some, task="retrieval")
    with pytest.raises(UsageError, match="unknown task 'none'"):
        resolve(some, task="none")
    one = registry.narrow(registry.lookup("v3"), hidden=1024, max_positions=8194, tasks=["separation"])
    assert resolve(one).task == "separation"


def test_words_are_expanded_to_the_models_own_tasks():
    v3, nano = registry.lookup("v3"), registry.lookup("v5-nano")
    assert set(registry.expand_tasks(v3, ["retrieval"])) == {"retrieval.query", "retrieval.passage"}
    assert registry.expand_tasks(v3, ["clustering", "separation", "none"]) == ("separation", "none")
    assert registry.expand_tasks(nano, ["clustering", "retrieval"]) == ("clustering", "retrieval")
    assert registry.expand_tasks(v3, ["all"]) == ("all",)


def test_an_unknown_task_lists_the_tasks_of_this_model_alone():
    v3, nano = registry.lookup("v3"), registry.lookup("v5-nano")
    assert set(registry.tasks_for(v3, ["retrieval", "none"])) == {"retrieval.query", "retrieval.passage", "none"}
    with pytest.raises(UsageError, match=r"unknown task 'seperation' \(did you mean 'separation'\?\)") as error:
        registry.tasks_for(v3, ["clustering", "seperation"])
    assert str(error.value).endswith(
        "jina-embeddings-v3 has: retrieval.query, retrieval.passage, separation, classification, text-matching, "
        "none, and understands retrieval, retrieval.document, clustering."
    )
    with pytest.raises(UsageError) as error:
        registry.tasks_for(nano, ["separation"])
    assert "text-nano has: retrieval, text-matching, clustering, classification" in str(error.value)
    assert "none" not in str(error.value)


def test_what_a_row_says_of_its_repositories():
    v3, nano, ranker = (registry.lookup(name) for name in ("v3", "v5-nano", "reranker-v3"))
    assert nano.repos("llama", ["clustering"]) == {
        "clustering": "jinaai/jina-embeddings-v5-text-nano-clustering-GGUF"
    }
    assert nano.repos("mlx", ["clustering"]) == {"clustering": nano.repo}
    assert (v3.repos("llama", v3.spec.tasks), v3.all_repos) == ({}, [v3.repo])
    assert ranker.all_repos == [ranker.repo, ranker.gguf_repo]
    assert (nano.pinned(nano.repo), nano.pinned("jinaai/other")) == (nano.revision, None)
    assert nano.pinned(nano.repos("llama", ["retrieval"])["retrieval"]) == "59cfaceeeb7d738c404659435af4c0da74d06c96"
    assert ranker.beside_gguf == (projector.FILE,)
    assert (nano.terms, registry.lookup("pico").terms) == ("CC BY-NC 4.0, non-commercial", "Apache-2.0")
    for row in registry.PUBLISHED:
        assert "" not in row.all_repos
        assert len(set(row.all_repos)) == len(row.all_repos)
        there = {"checkpoint": row.repo}
        assert {name for name in row.download if not there.get(name, row.gguf_repo)} == set()


@pytest.mark.parametrize("name", ["reranker-v3", "reranker-v2"])
def test_a_reranker_has_no_vectors(name):
    with pytest.raises(UsageError, match="ranks documents and has no vectors for texts. Use rerank"):
        resolve(registry.lookup(name).spec)


def test_every_row_is_known_by_its_architecture_and_rope_base():
    for row in registry.PUBLISHED:
        assert registry.identify(architecture=row.spec.architecture, rope_theta=row.rope_theta) is row
    with pytest.raises(ModelDamaged, match="jina-embeddings-v3 has the RoPE base 20000, not 10000"):
        registry.identify(architecture="jina-bert-v3", rope_theta=10_000.0)


def test_narrowing_a_reranker_leaves_its_vectors_alone():
    spec = registry.narrow(registry.lookup("reranker-v3"), hidden=256, max_positions=8192, tasks=["rerank"])
    assert (spec.dims, spec.max_tokens, spec.tasks, spec.default_task) == ((512,), 8192, ("rerank",), "rerank")


@pytest.mark.parametrize("name", ["jina-reranker-v3.5", "jinaai/jina-reranker-v3.5"])
def test_a_relative_with_another_attention_is_refused_by_name(name):
    with pytest.raises(UsageError, match="see a window of 1024 tokens only.*take jina-reranker-v3"):
        registry.lookup(name)
