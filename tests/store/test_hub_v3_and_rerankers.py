"""Fetching v3 and the rerankers: adapters among the weights, a projector beside a GGUF file, models without GGUF."""

from __future__ import annotations

import shutil

import pytest

from jina_local import registry
from jina_local.cli import main
from jina_local.errors import ModelNotFound, UsageError
from jina_local.store import find, hub, hub_cache, inventory, local_store, places

from .. import standin_hub, tiny

V3, LISTWISE, PAIRWISE = (registry.lookup(name) for name in ("v3", "reranker-v3", "reranker-v2"))
KINDS = {"v3": V3, "reranker-v3": LISTWISE, "reranker-v2": PAIRWISE}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = {"reranker-v3": {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                         "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 64}}  # fmt: skip

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """kind -> a published folder."""
    root = tmp_path_factory.mktemp("published")
    return {kind: tiny.write(root / kind, kind, config=SMALL.get(kind)) for kind in KINDS}


@pytest.fixture
def site(checkpoints, tmp_path, monkeypatch):
    """A hub with the three checkpoints and the listwise reranker's GGUF files, and empty places that lead to it."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JINA_LOCAL_HOME", str(tmp_path / "the store"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with standin_hub.serving() as standin:
        monkeypatch.setenv("HF_ENDPOINT", standin.url)
        for kind, row in KINDS.items():
            standin.add_folder(row.repo, row.revision, checkpoints[kind])
        files = {f"jina-reranker-v3-{label}.gguf": b"GGUF" + label.encode() for label in ("Q8_0", "Q4_K_M")}
        standin.add(
            LISTWISE.gguf_repo, COMMIT, {**files, "projector.safetensors": b"projector", "rerank.py": b"import os"}
        )
        yield standin


@pytest.fixture
def engine(monkeypatch):
    """Pretend that these engines are installed, the first preferred."""

    def only(*names):
        monkeypatch.setattr("jina_local.backends.installed", lambda asked: asked in names)
        monkeypatch.setattr("jina_local.backends.preferred", lambda: names[0])

    return only


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def cached(row):
    return [place for place in places.of(row) if place.where == places.CACHE]


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_whole_without_adapter_folders(site, kind):
    row = KINDS[kind]
    assert cached(row) == []
    files = hub.pull(row, "mlx")
    assert tuple(files) == row.spec.tasks
    (folder,) = set(files.values())
    assert hub_cache.commit_of(folder) == row.revision
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(names(folder))
    assert not [name for name in names(folder) if name.endswith((".py", ".gguf")) or "/" in name]
    (place,) = cached(row)
    assert (place.files, place.holds) == ({places.AS_PUBLISHED: files}, ("checkpoint",))
    (folder / "model.safetensors").unlink()
    (place,) = cached(row)
    assert (place.files, place.holds) == ({}, ("without model.safetensors",))


@pytest.mark.parametrize("kind", KINDS)
def test_find_fetches_a_checkpoint_for_mlx_and_finds_it_again(site, engine, kind):
    engine("mlx")
    row = KINDS[kind]
    found = find.find(row.aliases[0])
    assert (found.form, found.model.name, found.revision) == ("checkpoint", row.spec.name, row.revision)
    assert found.model.tasks == row.spec.tasks
    site.seen.clear()
    assert find.find(row.spec.name, offline=True).files == found.files
    assert site.seen == []


@pytest.mark.parametrize("kind", ["v3", "reranker-v2"])
def test_the_other_engine_takes_what_the_preferred_one_cannot_read(site, engine, kind):
    engine("llama", "mlx")
    found = find.find(KINDS[kind].spec.name)
    assert (found.form, found.backend) == ("checkpoint", "mlx")


def test_words_for_several_tasks_are_taken(site):
    assert set(hub.pull(V3, "mlx", tasks=["retrieval"])) == {"retrieval.query", "retrieval.passage"}
    assert set(hub.pull(V3, "mlx", tasks=["clustering", "none"])) == {"separation", "none"}
    with pytest.raises(UsageError, match=r"unknown task 'poetry'\. jina-embeddings-v3 has: retrieval\.query, "):
        hub.pull(V3, "mlx", tasks=["poetry"])


def test_a_gguf_reranker_comes_with_its_projector_and_is_nothing_without_it(site, caplog):
    files = hub.pull(LISTWISE, weights="q4_k_m")
    path = files["rerank"]
    assert path.name == "jina-reranker-v3-Q4_K_M.gguf"
    assert names(path.parent) == ["jina-reranker-v3-Q4_K_M.gguf", "projector.safetensors"]
    assert f"{LISTWISE.gguf_repo} has no pinned commit: main was fetched, which is {COMMIT}." in caplog.text
    (place,) = cached(LISTWISE)
    assert (place.files, place.holds) == ({"Q4_K_M": {"rerank": path}}, ("rerank Q4_K_M",))
    (path.parent / "projector.safetensors").unlink()
    (place,) = cached(LISTWISE)
    assert (place.files, place.holds) == ({}, ("rerank Q4_K_M", "without projector.safetensors"))
    assert hub.pull(LISTWISE, weights="Q4_K_M") == files
    assert cached(LISTWISE)[0].files == {"Q4_K_M": files}


def test_a_repository_that_lost_its_projector_is_refused(site):
    site.add(LISTWISE.gguf_repo, COMMIT, {"jina-reranker-v3-Q8_0.gguf": b"GGUF"})
    with pytest.raises(ModelNotFound, match=r"has no projector\.safetensors"):
        hub.pull(LISTWISE)


@pytest.mark.parametrize("kind", ["v3", "reranker-v2"])
def test_where_no_gguf_is_published_the_error_has_the_command(site, engine, kind, tmp_path):
    engine("llama")
    row = KINDS[kind]
    home = tmp_path / "the store" / row.spec.name
    command = f'`python -m convert gguf {row.spec.name} "{home}"{" --task all" if kind == "v3" else ""}`'
    for ask in (lambda: hub.pull(row), lambda: find.find(row.spec.name)):
        with pytest.raises(ModelNotFound) as error:
            ask()
        assert str(error.value).startswith(f"{row.spec.name}: no GGUF ")
        assert "no GGUF files are published. Convert the checkpoint" in str(error.value)
        assert command in str(error.value)
        assert "pip install 'jina_local[convert]'" in str(error.value)
    with pytest.raises(ModelNotFound) as error:
        find.find(row.spec.name, offline=True)
    assert command in str(error.value)
    assert site.seen == []


@pytest.mark.parametrize("kind", ["v3", "reranker-v2"])
def test_the_command_takes_the_checkpoint_and_says_how_to_go_on(site, engine, kind, capfd, caplog):
    engine("llama")
    row = KINDS[kind]
    assert main.main(["models", "pull", row.aliases[0]]) == 0
    out = capfd.readouterr()
    (place,) = cached(row)
    assert out.out == f"{place.path}\n"
    assert out.err.startswith("for llama.cpp: no GGUF files are published. Convert the checkpoint")
    assert "Licence of the weights: CC BY-NC 4.0, non-commercial" in caplog.text
    engine("mlx")
    assert main.main(["models", "pull", row.spec.name]) == 0
    assert "llama.cpp" not in capfd.readouterr().err
    for options in (["--backend", "llama"], ["--backend", "llama", "--weights", "Q8_0"]):
        with pytest.raises(ModelNotFound, match="no GGUF files are published"):
            main.main(["models", "pull", row.spec.name, *options])
    engine("llama")
    with pytest.raises(ModelNotFound, match="no GGUF files are published"):
        main.main(["models", "pull", row.spec.name, "--weights", "Q8_0"])


def test_the_list_says_what_each_can_do_and_what_is_here(site, capfd):
    hub.pull(V3, "mlx")
    hub.pull(LISTWISE)
    assert main.main(["models", "list"]) == 0
    text = capfd.readouterr().out
    blocks = {block.split("\0")[0].split()[0]: block for block in text.replace("\n  ", "\0").split("\n") if block}
    assert list(blocks) == registry.names()
    facts = {name: block.split("\0")[1] for name, block in blocks.items()}
    assert facts["jina-embeddings-v3"] == (
        "1024 dimensions, 8192 tokens, CC BY-NC 4.0; retrieval.query, retrieval.passage, separation, classification, "
        "text-matching, none; late chunking"
    )
    assert facts["jina-reranker-v3"] == ("ranks documents (listwise, 512-d embeddings), 131072 tokens, CC BY-NC 4.0")
    assert facts["jina-reranker-v2-base-multilingual"] == "ranks documents (pairwise), 1024 tokens, CC BY-NC 4.0"
    assert facts["pico"].endswith("256 dimensions, 2048 tokens, Apache-2.0; retrieval, text-matching, clustering, "
                                  "classification")  # fmt: skip
    assert "  checkpoint\0" in blocks["jina-embeddings-v3"]
    assert "  rerank Q8_0\0" in blocks["jina-reranker-v3"]
    assert "not here: jina-local models pull jina-reranker-v2-base-multilingual" in text


def test_the_list_as_json(site, capfd):
    import json

    assert main.main(["models", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capfd.readouterr().out)}
    assert [(rows[n]["scoring"], rows[n]["late_chunking"]) for n in registry.names()] == [
        (None, False), (None, False), (None, True), ("listwise", False), ("pairwise", False), (None, False),
    ]  # fmt: skip
    assert rows["jina-reranker-v2-base-multilingual"]["dims"] == []


def test_path_verify_and_remove(site, capfd):
    hub.pull(PAIRWISE, "mlx")
    hub.pull(LISTWISE)
    for row, count in ((LISTWISE, 2), (PAIRWISE, None)):
        folder = find.path(row.spec.name)
        assert hub_cache.commit_of(folder) in (row.revision, COMMIT)
        (found,) = inventory.verify(row.spec.name)
        assert (found.path, found.unknown, found.faults) == (folder, 0, ())
        assert count in (None, found.checked)
    with (find.path("reranker-v3") / "projector.safetensors").open("r+b") as file:
        file.write(b"PROJ")
    (bad,) = inventory.verify("reranker-v3")
    assert "projector.safetensors: has the SHA-256" in bad.faults[0]
    for row in (LISTWISE, PAIRWISE):
        assert [place.where for place in inventory.remove(row.spec.name)] == ["hub cache"]
        with pytest.raises(ModelNotFound, match="not on this machine. Looked for") as error:
            find.path(row.spec.name)
        assert "pico" not in str(error.value)


@pytest.mark.llama
def test_a_converted_reranker_in_the_local_store_is_found_by_its_name(site, engine, checkpoints, tmp_path):
    from convert.__main__ import main as convert

    engine("llama")
    home = local_store.root() / PAIRWISE.spec.name
    home.parent.mkdir(parents=True)
    assert convert(["gguf", str(checkpoints["reranker-v2"]), str(home), "--type", "F32"]) == 0
    found = find.find("reranker-v2", offline=True)
    assert (found.label, found.model.name) == ("F32", PAIRWISE.spec.name)
    assert find.path("reranker-v2") == home
    assert places.of(PAIRWISE)[0].holds == ("rerank F32",)
    assert [one.faults for one in inventory.verify("reranker-v2")] == [()]
    shutil.rmtree(home)
