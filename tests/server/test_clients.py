"""The clients that people have, against a running server: they get the vectors that the Python API gives."""

from __future__ import annotations

import gc
from importlib import import_module

import numpy as np
import pytest

from .conftest import serving

TEXTS = ["hello world", "Mars is called the Red Planet.", "Röntgen, 火星, 🚀"]
KEY = "no-such-key"  # the clients want one, the server does not

# Their own warnings are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


def client(name):
    """A package; the test is skipped if it is not installed."""
    package = name.partition(".")[0].replace("_", "-")
    return pytest.importorskip(name, reason=f"{package} is not installed")


@pytest.fixture(autouse=True)
def _connections_are_closed():
    """Those that a client leaves open are collected here, where nobody minds its warning."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def of(model):
    """Name after the colon -> the vectors of TEXTS."""
    return {
        "": model.encode(TEXTS, task="text-matching"),
        "query": model.encode(TEXTS, prompt_name="query"),
        "document": model.encode(TEXTS, prompt_name="document"),
        "clustering": model.encode(TEXTS, task="clustering"),
    }


def same(found, expected):
    """To the last bits, which company in a pass may change."""
    return np.allclose(np.array(found, np.float32), expected, rtol=0, atol=1e-6)


def test_huggingface_hub(server, model, of):
    hub = client("huggingface_hub")
    vectors = hub.InferenceClient(f"{server.url}/embed", token=KEY)
    assert same(vectors.feature_extraction(TEXTS), of[""])
    assert same(vectors.feature_extraction(TEXTS[0], prompt_name="query"), of["query"][:1])
    assert same(vectors.feature_extraction(TEXTS, prompt_name="clustering", normalize=True), of["clustering"])
    narrow = vectors.feature_extraction(TEXTS, dimensions=64, truncate=True, truncation_direction="right")
    assert same(narrow, model.encode(TEXTS, task="text-matching", truncate_dim=64))
    similar = hub.InferenceClient(f"{server.url}/similarity", token=KEY)
    expected = model.similarity(of[""][:1], of[""])[0].tolist()
    assert similar.sentence_similarity(TEXTS[0], TEXTS) == pytest.approx(expected, abs=1e-6)
    hub.close_session()


@pytest.mark.slow
def test_openai(server, model, of):
    openai = client("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY) as one:

        def vectors(name="pico", given=TEXTS, **words):
            answer = one.embeddings.create(model=name, input=given, **words)
            assert [data.index for data in answer.data] == list(range(len(answer.data)))
            return [data.embedding for data in answer.data]

        for side in of:  # base64 is what the client asks for by itself
            assert same(vectors(f"pico:{side}".rstrip(":")), of[side])
        assert same(vectors(encoding_format="float"), of[""])
        assert same(vectors(extra_body={"task": "retrieval.query"}), of["query"])
        assert same(vectors(dimensions=64), model.encode(TEXTS, task="text-matching", truncate_dim=64))
        assert same(vectors(given=[model.tokenizer.ids(text) for text in TEXTS]), of[""])
        answer = one.embeddings.create(model="pico", input=TEXTS)
        assert answer.usage.total_tokens == sum(len(model.tokenizer.ids(text)) for text in TEXTS)
        assert [listed.id for listed in one.models.list()] == ["pico"]
        with pytest.raises(openai.NotFoundError, match="In service: pico"):
            vectors("text-embedding-3-small")
        with pytest.raises(openai.BadRequestError, match="not a trained width"):
            vectors(dimensions=100)


@pytest.mark.slow
def test_langchain_openai(server, of):
    embeddings = client("langchain_openai").OpenAIEmbeddings
    words = {"base_url": f"{server.url}/v1", "api_key": KEY, "check_embedding_ctx_length": False}
    documents, queries = (embeddings(model=f"pico:{side}", **words) for side in ("document", "query"))
    assert same(documents.embed_documents(TEXTS), of["document"])
    assert same([queries.embed_query(text) for text in TEXTS], of["query"])


@pytest.mark.slow
def test_langchain_openai_with_ids_of_another_tokenizer_is_an_error(server, monkeypatch):
    """Its default: it sends the ids of OpenAI's tokenizer, whose vocabulary it would fetch."""
    embeddings, tiktoken = client("langchain_openai").OpenAIEmbeddings, client("tiktoken")
    ranks = {bytes([n]): n for n in range(256)}
    other = tiktoken.Encoding("bytes", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda _name: other)
    one = embeddings(base_url=f"{server.url}/v1", api_key=KEY, model="pico")
    for texts in (TEXTS, ["a"], ["a", "b c"]):  # ids of "a" are those of another text here
        with pytest.raises(client("openai").BadRequestError, match="check_embedding_ctx_length=False"):
            one.embed_documents(texts)


@pytest.mark.slow
def test_llama_index_openai_like(server, of):
    client("llama_index.embeddings.openai_like")
    embedding = import_module("llama_index.embeddings.openai_like").OpenAILikeEmbedding
    one = embedding(model_name="pico:document", api_base=f"{server.url}/v1", api_key=KEY)
    assert same(one.get_text_embedding_batch(TEXTS), of["document"])
    assert same([one.get_text_embedding(text) for text in TEXTS], of["document"])
    asks = embedding(model_name="pico:query", api_base=f"{server.url}/v1", api_key=KEY, dimensions=None)
    assert same([asks.get_query_embedding(text) for text in TEXTS], of["query"])


@pytest.mark.slow
@pytest.mark.parametrize("version", ["Client", "ClientV2"])
def test_cohere_ranks(server, model, version):
    one = getattr(client("cohere"), version)(api_key=KEY, base_url=server.url)
    found = one.rerank(model="pico", query="red planet", documents=TEXTS, top_n=2).results
    expected = model.rerank("red planet", TEXTS, top_n=2)
    assert [result.index for result in found] == [ranked.index for ranked in expected]
    assert [result.relevance_score for result in found] == pytest.approx(
        [ranked.score for ranked in expected], abs=1e-8
    )


@pytest.mark.slow
def test_elasticsearch(tmp_path, model, of):
    package = client("elasticsearch")
    with serving(JINA_LOCAL_HOME=str(tmp_path)) as running, package.Elasticsearch(running.url, api_key=KEY) as one:
        settings = {"model_id": "pico", "api_key": KEY}
        api = one.inference
        api.put_jinaai(
            task_type="text_embedding", jinaai_inference_id="vectors", service="jinaai", service_settings=settings
        )
        config = {"service": "jinaai", "service_settings": {**settings, "element_type": "bit"}}
        api.put(task_type="text_embedding", inference_id="bits", inference_config=config)
        api.put(task_type="rerank", inference_id="ranks", inference_config={**config, "service_settings": settings})

        for kind, side in (("search", "query"), ("ingest", "document"), ("clustering", "clustering"), (None, "")):
            answer = api.text_embedding(inference_id="vectors", input=TEXTS, input_type=kind)
            assert same([result["embedding"] for result in answer["text_embedding"]], of[side])
        answer = api.inference(inference_id="bits", input=TEXTS, input_type="ingest")
        expected = model.encode(TEXTS, prompt_name="document", precision="binary")
        assert [result["embedding"] for result in answer["text_embedding_bits"]] == expected.tolist()
        found = api.rerank(inference_id="ranks", query="red planet", input=TEXTS, top_n=2, return_documents=True)
        assert [(r["index"], r["relevance_score"], r["text"]) for r in found["rerank"]] == [
            (r.index, r.score, r.document) for r in model.rerank("red planet", TEXTS, top_n=2)
        ]

        names = [endpoint["inference_id"] for endpoint in api.get()["endpoints"]]
        assert names == ["vectors", "bits", "ranks"]
        assert api.delete(inference_id="bits", dry_run=True)["acknowledged"] is False
        assert api.delete(inference_id="bits")["acknowledged"] is True
        with pytest.raises(package.NotFoundError, match="resource_not_found_exception"):
            api.get(inference_id="bits")


@pytest.mark.slow
def test_ollama(server, model, of):
    package = client("ollama")
    one = package.Client(host=server.url)
    assert {listed.model for listed in one.list().models} >= {f"pico:{side or 'latest'}" for side in of}
    for side in of:
        assert same(one.embed(model=f"pico:{side or 'latest'}", input=TEXTS).embeddings, of[side])
    cut = one.embed(model="pico", input=TEXTS[0], dimensions=64, truncate=True, keep_alive="1m").embeddings
    assert same(cut, model.encode(TEXTS[:1], task="text-matching", truncate_dim=64))
    older = one.embeddings(model="pico:query", prompt=TEXTS[0]).embedding
    assert same(older, model.encode(TEXTS[0], prompt_name="query", normalize=False))
    assert one.show("pico").modelinfo["eurobert.embedding_length"] == 256
    with pytest.raises(package.ResponseError, match="In service: pico"):
        one.embed(model="all-minilm", input="a")
