"""Finding v3 and the rerankers: words for tasks, the base alone, no default task, models without published GGUF."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("gguf", reason="GGUF test files are written with it: pip install 'jina_local[convert]'")

from jina_local import registry
from jina_local.errors import ModelDamaged, ModelNotFound, UsageError
from jina_local.store import find

from .. import layout_files, tiny, tiny_v3_and_rerankers
from ..layout_files import COMMIT, into_cache, seal, tree
from ..model_files.test_gguf_model_v3_and_rerankers import write

# Fixtures, under the names that tests ask for them by.
places = layout_files.places
engines = layout_files.engines
pytestmark = pytest.mark.usefixtures("places")
V3 = registry.lookup("v3")
ADAPTERS = tiny_v3_and_rerankers.V3_TASKS
BOTH = {"retrieval.query", "retrieval.passage"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A published v3. Not to be changed."""
    return tiny.write(tmp_path_factory.mktemp("published") / "v3", "v3")


def ggufs(folder, *tasks, label="Q8_0"):
    folder.mkdir(parents=True, exist_ok=True)
    return {task: write(folder / f"v3-{task}-{label}.gguf", "v3", label=label) for task in tasks}


def shared(folder, source, tasks=ADAPTERS):
    """An MLX base with adapters beside it, as far as the finder looks."""
    (folder / "adapters").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copyfile(source / name, folder / name)
    entries = {"model.safetensors": (None, "4bit")}
    for task in tasks:
        shutil.copyfile(source / "model.safetensors", folder / "adapters" / f"{task}.safetensors")
        entries[f"adapters/{task}.safetensors"] = (task, None)
    return seal(folder, "mlx", entries, model=V3.spec.name)


def test_words_for_tasks_are_looked_for_as_the_models_own_by_file_name(tmp_path):
    files = ggufs(tmp_path, "retrieval.passage", "separation", "none")
    found = find.find(tmp_path)
    assert (dict(found.files), found.model.default_task) == (files, None)
    assert find.find(tmp_path, tasks=["clustering"]).files == files
    assert find.find(tmp_path, tasks=["none", "separation"]).files == files
    with pytest.raises(UsageError, match=r"no file for retrieval\.passage, retrieval\.query\. There: Q8_0"):
        find.find(tmp_path, tasks=["retrieval"])
    ggufs(tmp_path, "retrieval.query", "retrieval.passage", label="Q4_K_M")
    assert find.find(tmp_path).label == "Q8_0"
    found = find.find(tmp_path, tasks=["retrieval"])
    assert (found.label, set(found.files)) == ("Q4_K_M", BOTH)
    assert set(found.model.tasks) == BOTH
    single = find.find(files["separation"], tasks=["clustering"])
    assert (list(single.files), single.model.default_task) == (["separation"], "separation")


def test_words_are_understood_of_files_that_only_their_header_names(tmp_path):
    write(tmp_path / "one.gguf", "v3", keys={"jina_local.task": "separation"})
    assert list(find.find(tmp_path, tasks=["clustering"]).files) == ["separation"]
    (tmp_path / "zero.gguf").write_bytes(b"GGUF and no more")
    assert list(find.find(tmp_path, tasks=["clustering"]).files) == ["separation"]
    sealed = tmp_path / "sealed"
    sealed.mkdir()
    shutil.copyfile(tmp_path / "one.gguf", sealed / "x.gguf")
    seal(sealed, "gguf", {"x.gguf": ("separation", "Q8_0")}, model=V3.spec.name)
    for path in (sealed, sealed / "x.gguf"):
        assert list(find.find(path, tasks=["clustering"]).files) == ["separation"]
        with pytest.raises(UsageError, match="no file for retrieval"):
            find.find(path, tasks=["retrieval"])


def test_a_published_checkpoint_serves_its_adapters_and_the_base_alone(checkpoint):
    for tasks in (None, ["retrieval"], ["clustering", "none"], list(V3.spec.tasks)):
        found = find.find(checkpoint, tasks=tasks)
        assert found.files == dict.fromkeys(V3.spec.tasks, checkpoint)
        assert found.adapters == dict.fromkeys(ADAPTERS, checkpoint)
        assert found.model.default_task is None
    with pytest.raises(UsageError, match=r"unknown task 'poetry'"):
        find.find(checkpoint, tasks=["poetry"])


def test_an_mlx_base_with_adapters_serves_words_and_the_base_alone(tmp_path, checkpoint):
    folder = shared(tmp_path / "out", checkpoint)
    found = find.find(folder, tasks=["retrieval", "none"])
    assert found.files == dict.fromkeys(V3.spec.tasks, folder)
    assert set(found.adapters) == set(ADAPTERS)
    fewer = shared(tmp_path / "fewer", checkpoint, ("retrieval.query", "separation"))
    assert find.find(fewer).model.tasks == ("retrieval.query", "separation", "none")
    with pytest.raises(
        UsageError, match=r"no weights for retrieval\.passage\. There: retrieval\.query, separation, none\."
    ):
        find.find(fewer, tasks=["retrieval"])
    named_none = shared(tmp_path / "none", checkpoint, ("none",))
    with pytest.raises(ModelDamaged, match="has adapters for none, which jina-embeddings-v3 has not"):
        find.find(named_none)


def test_merged_folders_of_several_tasks_take_words(tmp_path, checkpoint):
    entries = {}
    for task in ("retrieval.query", "none"):
        (tmp_path / "out" / task).mkdir(parents=True)
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            shutil.copyfile(checkpoint / name, tmp_path / "out" / task / name)
        entries[f"{task}/model.safetensors"] = (task, "8bit")
    folder = seal(tmp_path / "out", "mlx", entries, model=V3.spec.name)
    assert find.find(folder, tasks=["none"]).files == {t: folder / t for t in ("retrieval.query", "none")}
    with pytest.raises(UsageError, match=r"no weights for retrieval\.passage\. There: "):
        find.find(folder, tasks=["retrieval"])


def test_by_name_any_task_will_do_where_the_model_has_no_default(places, checkpoint):
    store = places / "store"
    ggufs(store / "one", "separation", label="Q8_0")
    seal(store / "one", "gguf", {"v3-separation-Q8_0.gguf": ("separation", "Q8_0")}, model=V3.spec.name)
    assert list(find.find("v3", backend="llama").files) == ["separation"]
    assert list(find.find("v3", tasks=["clustering"]).files) == ["separation"]
    names = {f"v3-{task}-Q4_K_M.gguf": (task, "Q4_K_M") for task in BOTH}
    ggufs(store / "two", *BOTH, label="Q4_K_M")
    seal(store / "two", "gguf", names, model=V3.spec.name)
    found = find.find("v3", backend="llama")
    assert (set(found.files), found.label) == (BOTH, "Q4_K_M"), "the folder that serves most"
    assert set(find.find("v3", tasks=["retrieval"]).files) == BOTH
    assert find.find("v3", weights="Q8_0").label == "Q8_0"
    with pytest.raises(ModelNotFound, match="no GGUF weights for classification in the local store"):
        find.find("v3", backend="llama", tasks=["classification"])


def test_the_base_alone_is_found_by_name_in_a_folder_with_adapters(places, checkpoint):
    shared(places / "store" / "mine", checkpoint, ("separation",))
    found = find.find("v3", backend="mlx", tasks=["none", "clustering"])
    assert set(found.files) == {"none", "separation"}
    with pytest.raises(ModelNotFound, match="not on this machine"):
        find.find("v3", backend="mlx", tasks=["retrieval"])


def test_by_name_in_the_hub_cache(places, checkpoint):
    base = into_cache(places / "cache", V3.repo, V3.revision, tree(checkpoint))
    for tasks in (None, ["retrieval"], ["none"]):
        found = find.find("v3", tasks=tasks)
        assert (found.form, found.revision) == ("checkpoint", V3.revision)
        assert found.files == dict.fromkeys(V3.spec.tasks, base)
    with pytest.raises(UsageError, match=r"unknown task 'rerank'\. jina-embeddings-v3 has: retrieval\.query"):
        find.find("v3", tasks=["rerank"])
    with pytest.raises(UsageError, match=r"unknown task 'retrieval'\. jina-reranker-v3 has: rerank\."):
        find.find("reranker-v3", tasks=["retrieval"])


@pytest.mark.parametrize("name", ["jina-embeddings-v3", "jina-reranker-v2-base-multilingual"])
def test_without_published_gguf_llama_by_name_says_how_to_make_it(places, checkpoint, engines, name):
    if name == V3.spec.name:
        into_cache(places / "cache", V3.repo, V3.revision, tree(checkpoint))
    engines("llama")
    for request, what in (({}, "GGUF"), ({"backend": "llama"}, "GGUF"), ({"weights": "Q4_K_M"}, "Q4_K_M")):
        with pytest.raises(ModelNotFound) as error:
            find.find(name, **request)
        text = str(error.value)
        assert text.startswith(f"{name}: no {what} weights in the local store {places / 'store'}, and no GGUF files")
        assert f'python -m convert gguf {name} "{places / "store" / name}"' in text
        assert f"`python -m jina_local models pull {name}`" in text
        assert ("Here, and not what was asked for: hub cache, " in text) == (name == V3.spec.name)
    if name == V3.spec.name:
        engines("llama", "mlx")
        assert find.find(name).form == "checkpoint", "auto takes what there is"


def test_a_model_that_is_nowhere_says_what_was_looked_for(places, engines):
    engines("llama", "mlx")
    with pytest.raises(ModelNotFound) as error:
        find.find("v3")
    text = str(error.value)
    assert "jinaai/jina-embeddings-v3 (config.json, model.safetensors, tokenizer.json) in" in text
    assert "For llama.cpp, no GGUF files are published." in text
    assert "(about 1.2 GB; CC BY-NC 4.0, non-commercial)" in text
    with pytest.raises(ModelNotFound, match=r"jina-reranker-v3-Q8_0\.gguf or jinaai/jina-reranker-v3 \(config"):
        find.find("reranker-v3")


def test_a_reranker_that_is_not_here_says_which_to_fetch_its_size_and_its_licence(places, engines):
    engines("llama")
    with pytest.raises(ModelNotFound) as error:
        find.find(registry.DEFAULT_RERANKER)
    command = "`python -m jina_local models pull jina-reranker-v3` (about 0.64 GB; CC BY-NC 4.0, non-commercial)"
    assert command in str(error.value)
    assert "pico" not in str(error.value)
    with pytest.raises(ModelNotFound) as error:
        find.find(registry.DEFAULT_RERANKER, weights="q4_k_m", tasks=["rerank"])
    command = "models pull jina-reranker-v3 --task rerank --weights Q4_K_M` (size not known here; CC BY-NC 4.0"
    assert command in str(error.value)
    with pytest.raises(ModelNotFound, match=r"jina-reranker-v3 --backend mlx` \(about 1.2 GB"):
        find.find(registry.DEFAULT_RERANKER, backend="mlx")


def test_the_listwise_rerankers_repository_is_a_name(places, engines):
    engines("mlx", "llama")
    row = registry.lookup("reranker-v3")
    path = write(places / "jina-reranker-v3-Q8_0.gguf", "reranker-v3")
    files = {name: places / name for name in (path.name, "projector.safetensors")}
    root = into_cache(places / "cache", row.gguf_repo, COMMIT, files)
    for name in (row.gguf_repo, f"{row.gguf_repo}:q8_0"):
        found = find.find(name)
        assert (found.files, found.projector) == ({"rerank": root / path.name}, root / "projector.safetensors")
