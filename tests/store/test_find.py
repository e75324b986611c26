"""A name or a path -> files: which place and which engine come first, and what is said when nothing is here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="GGUF test files are written with it: pip install 'jina_local[convert]'")

from jina_local import backends, registry
from jina_local.cli import main
from jina_local.errors import EngineMissing, ModelDamaged, ModelNotFound, UsageError
from jina_local.store import find

from .. import layout_files, tiny
from ..layout_files import (
    COMMIT,
    NANO,
    SMALL,
    converted,
    into_cache,
    seal,
    tree,
    write_adapter,
    write_base,
    write_gguf,
)

# Fixtures, under the names that tests ask for them by.
published = layout_files.published
places = layout_files.places
engines = layout_files.engines
pytestmark = pytest.mark.usefixtures("places")


def test_words_that_are_neither_path_nor_name(tmp_path):
    for path in ("./v5-nano", str(tmp_path / "nothing"), "a/b/c", "model.gguf", "~/nothing-there", Path("v5-nano")):
        with pytest.raises(ModelNotFound) as error:
            find.find(path)
        assert "no such file or folder" in str(error.value)
        assert NANO in str(error.value)
    with pytest.raises(UsageError) as error:
        find.find("v5-nanno")
    assert "did you mean 'v5-nano'?" in str(error.value)
    assert "There is no file or folder 'v5-nanno' either." in str(error.value)
    with pytest.raises(UsageError, match="no model was given"):
        find.find("")
    with pytest.raises(UsageError, match="unknown backend 'torch'. Possible: auto, mlx, llama, onnx"):
        find.find("v5-nano", backend="torch")
    with pytest.raises(UsageError, match="unknown weights 'Q9'.*for llama: Q8_0.*for mlx: 8bit.*for onnx: INT8"):
        find.find("v5-nano:Q9")
    with pytest.raises(UsageError, match="asks for Q8_0, and weights='Q4_0' for another"):
        find.find("v5-nano:Q8_0", weights="Q4_0")
    with pytest.raises(UsageError, match="unknown task 'poetry'"):
        find.find("v5-nano", tasks=["poetry"])
    with pytest.raises(UsageError, match="weights 'Q8_0' are not for mlx, which has 8bit"):
        find.find("v5-nano", backend="mlx", weights="Q8_0")
    with pytest.raises(UsageError, match=r"revision '\.\./\.\./x' is not a commit, branch or tag"):
        find.find("v5-nano", backend="llama", revision="../../x")


@pytest.mark.parametrize("backend", ["llama", "mlx"])
def test_a_model_that_is_not_here_says_what_was_looked_for_and_the_ways_out(places, backend):
    with pytest.raises(ModelNotFound) as error:
        find.find("v5-nano", backend=backend)
    text = str(error.value)
    wanted = {"llama": "v5-nano-retrieval-Q8_0.gguf", "mlx": "jinaai/jina-embeddings-v5-text-nano (config.json"}
    assert text.startswith(f"{NANO}: not on this machine")
    assert wanted[backend] in text
    assert str(places / "store") in text
    assert str(places / "cache") in text
    assert f"python -m jina_local models pull {NANO}" in text
    assert "give the path" in text


def test_without_any_engine_a_name_asks_for_one(monkeypatch):
    monkeypatch.setattr(backends, "installed", lambda name: False)
    with pytest.raises(EngineMissing, match="pip install"):
        find.find("v5-nano")


@pytest.mark.parametrize("name", [NANO, "v5-nano", f"jinaai/{NANO}", f"JinaAI/{NANO}"])
def test_the_local_store_comes_before_the_hub_cache(places, published, engines, name):
    row = registry.lookup("v5-nano")
    repo = row.gguf_repo.format(task="retrieval")
    gguf_file = write_gguf(places / "v5-nano-retrieval-Q8_0.gguf")
    into_cache(places / "cache", repo, row.revisions[repo], {gguf_file.name: gguf_file})
    assert find.find(name).revision == row.revisions[repo]
    # The other engine's files, here, come before the preferred engine's in the cache.
    converted(places / "store" / "mine", published["nano"], "mlx", "8bit")
    found = find.find(name)
    assert (found.form, found.label) == ("mlx", "8bit")
    assert any(f"in the local store, {places / 'store' / 'mine'}" in why for why in found.reasons)
    assert find.find(name, backend="llama").form == "gguf"
    engines("llama")
    assert find.find(name).form == "gguf"


def test_of_several_converted_folders_the_first_of_the_order_is_taken(places, published):
    converted(places / "store" / "a", published["nano"], "mlx", "4bit", ("retrieval", "clustering"))
    converted(places / "store" / "b" / "16", published["nano"], "mlx", "16bit")
    converted(places / "store" / "c", published["nano"], "mlx", "8bit", ("clustering",))
    found = find.find("v5-nano", backend="mlx")
    assert (found.label, list(found.files)) == ("16bit", ["retrieval"])
    assert any("the first choice of 2 in the local store" in why for why in found.reasons)
    assert find.find("v5-nano", backend="mlx", weights="4BIT").label == "4bit"
    assert find.find("v5-nano", backend="mlx", tasks=["clustering"]).label == "8bit"
    assert find.find("v5-nano", backend="mlx", tasks=["clustering", "retrieval"]).label == "4bit"
    with pytest.raises(ModelNotFound, match="no 5bit weights in the local store.*--bits 5"):
        find.find("v5-nano", weights="5bit")
    with pytest.raises(ModelNotFound, match="at revision v9"):
        find.find("v5-nano", backend="mlx", revision="v9")
    assert find.find("v5-nano", backend="mlx", revision=COMMIT, weights="4bit").revision == COMMIT


def test_a_base_with_adapters_in_the_store_serves_all_its_tasks_by_name(places, capfd):
    folder = places / "store" / "shared"
    write_base(folder / "v5-nano-base-Q8_0.gguf")
    entries = {"v5-nano-base-Q8_0.gguf": (None, "Q8_0")}
    for task in ("clustering", "retrieval"):
        entries[write_adapter(folder / f"v5-nano-{task}-adapter.gguf", task=task).name] = (task, None)
    seal(folder, "gguf", entries)
    found = find.find("v5-nano", backend="llama")
    assert found.files == dict.fromkeys(("clustering", "retrieval"), folder / "v5-nano-base-Q8_0.gguf")
    assert sorted(found.adapters) == ["clustering", "retrieval"]
    assert find.find("v5-nano:q8_0", tasks=["clustering", "retrieval"]).files == found.files
    with pytest.raises(ModelNotFound, match="not on this machine"):
        find.find("v5-nano", backend="llama", tasks=["classification"])
    assert main.main(["models", "list"]) == 0
    assert "base Q8_0, clustering adapter, retrieval adapter\n" in capfd.readouterr().out
    assert main.main(["models", "verify", "v5-nano"]) == 0
    assert capfd.readouterr().out.startswith(f"ok  {folder}  (3 files)\n")


def test_a_damaged_folder_in_the_store_is_said_and_does_not_hide_the_others(places, published):
    converted(places / "store" / "bad", published["nano"], "mlx", "8bit")
    (places / "store" / "bad" / "config.json").unlink()
    with pytest.raises(ModelNotFound, match="not usable: .*bad: config.json is missing"):
        find.find("v5-nano", backend="mlx")
    converted(places / "store" / "good", published["nano"], "mlx", "8bit")
    assert find.find("v5-nano", backend="mlx").files == {"retrieval": places / "store" / "good"}


def test_a_source_is_a_published_checkpoint_and_no_conversion(places, published):
    converted(places / "store" / "mine", published["nano"], "checkpoint", "F32")
    with pytest.raises(ModelNotFound):
        find.find("v5-nano", source=True)
    row = registry.lookup("v5-nano")
    base = into_cache(places / "cache", row.repo, row.revision, tree(published["nano"]))
    found = find.find("v5-nano", source=True)
    assert found.files == dict.fromkeys(tiny.TASKS, base)
    assert found.revision == row.revision


def test_the_cache_prefers_the_pinned_commit_and_says_so_when_it_is_another(places):
    row = registry.lookup("v5-nano")
    repo = row.gguf_repo.format(task="retrieval")
    file = write_gguf(places / "v5-nano-retrieval-Q8_0.gguf")
    into_cache(places / "cache", repo, COMMIT, {file.name: file})
    found = find.find("v5-nano", backend="llama")
    assert found.revision == COMMIT
    assert any("not the pinned 59cfaceeeb7d" in why for why in found.reasons)
    pinned = into_cache(places / "cache", repo, row.revisions[repo], {file.name: file})
    assert find.find("v5-nano", backend="llama").files == {"retrieval": pinned / file.name}
    assert find.find("v5-nano", backend="llama", revision=COMMIT).revision == COMMIT
    refs = pinned.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    assert find.find("v5-nano", backend="llama", revision="main").revision == COMMIT


def test_offline_any_task_that_is_cached_will_do_unless_one_is_asked_for(places):
    row = registry.lookup("v5-nano")
    file = write_gguf(places / "v5-nano-clustering-Q4_K_M.gguf", label="Q4_K_M")
    into_cache(places / "cache", row.gguf_repo.format(task="clustering"), COMMIT, {file.name: file})
    found = find.find("v5-nano", backend="llama")
    assert (list(found.files), found.label, found.model.default_task) == (["clustering"], "Q4_K_M", "clustering")
    with pytest.raises(ModelNotFound, match=r"v5-nano-retrieval-Q8_0\.gguf"):
        find.find("v5-nano", backend="llama", tasks=["retrieval"])
    named = find.find(f"{row.gguf_repo.format(task='clustering')}:q4_k_m")
    assert list(named.files) == ["clustering"]
    with pytest.raises(UsageError, match="which llama reads and mlx does not"):
        find.find(row.gguf_repo.format(task="clustering"), backend="mlx")


def test_an_incomplete_snapshot_is_not_used(places, published):
    row = registry.lookup("v5-nano")
    base = into_cache(places / "cache", row.repo, row.revision, tree(published["nano"]))
    assert find.find("v5-nano", backend="mlx").files == dict.fromkeys(tiny.TASKS, base)
    (base / "adapters" / "clustering" / "adapter_model.safetensors").unlink()
    (base / "adapters" / "clustering" / "adapter_config.json").unlink()
    assert "clustering" not in find.find("v5-nano", backend="mlx").files
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound):
        find.find("v5-nano", backend="mlx")


def test_a_folder_in_the_current_directory_comes_before_a_name(tmp_path, published, monkeypatch):
    shutil.copytree(published["nano"], tmp_path / "v5-nano")
    monkeypatch.chdir(tmp_path)
    assert find.find("v5-nano").files["retrieval"] == Path("v5-nano")


def test_a_checkpoint_in_the_cache_is_not_taken_for_what_it_is_not(places, published):
    row = registry.lookup("v5-nano")
    base = into_cache(places / "cache", row.repo, row.revision, tree(published["nano"]))
    with pytest.raises(ModelNotFound, match="no 8bit weights in the local store .*, and none are published"):
        find.find("v5-nano", weights="8bit")
    shutil.rmtree(base)
    into_cache(places / "cache", row.repo, row.revision, tree(published["small"]))
    with pytest.raises(ModelDamaged, match=f"holds {SMALL}, and was published as {NANO}"):
        find.find("v5-nano", backend="mlx")


def test_a_file_that_is_another_model_than_its_repository_is_refused(places):
    row = registry.lookup("v5-nano")
    repo = row.gguf_repo.format(task="retrieval")
    small = write_gguf(places / "v5-small-retrieval-Q8_0.gguf", "small")
    into_cache(places / "cache", repo, COMMIT, {"v5-nano-retrieval-Q8_0.gguf": small})
    with pytest.raises(ModelDamaged, match=f"has the name of {NANO} and holds {SMALL}"):
        find.find("v5-nano", backend="llama")


def test_asking_offline_opens_no_socket(places, published):
    row = registry.lookup("v5-nano")
    into_cache(places / "cache", row.repo, row.revision, tree(published["nano"]))
    script = """
import sys
def watch(event, args):
    if event.startswith("socket.") or event == "urllib.Request":
        print("NETWORK", event, args, file=sys.stderr)
        raise SystemExit(9)
sys.addaudithook(watch)
from jina_local import registry
from jina_local.store import find, inventory, places
from jina_local.errors import ModelNotFound
found = find.find("v5-nano", backend="mlx", offline=True)
assert found.label == "F32"
[places.of(row) for row in registry.PUBLISHED], inventory.verify("v5-nano"), find.path("v5-nano")
try:
    find.find("v5-small", backend="llama", offline=True)
except ModelNotFound:
    print("done", "huggingface_hub" in sys.modules)
"""
    env = {k: v for k, v in os.environ.items() if k != "JINA_LOCAL_OFFLINE"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=False)
    assert (done.stdout, done.stderr) == ("done False\n", "")


def test_path_names_the_folder_of_the_files_that_find_opens(places, published, engines):
    row = registry.lookup("v5-nano")

    def agree(**request):
        found = find.find("v5-nano", **request)
        task = (request.get("tasks") or [found.model.default_task])[0]
        opened = found.files[task]
        folder = opened.parent if opened.suffix == ".gguf" else opened
        assert find.path("v5-nano", **request) == folder
        return folder

    base = into_cache(places / "cache", row.repo, row.revision, tree(published["nano"]))
    assert agree() == base
    for task in ("clustering", "retrieval"):
        file = write_gguf(places / f"v5-nano-{task}-Q8_0.gguf")
        into_cache(places / "cache", row.gguf_repo.format(task=task), COMMIT, {file.name: file})
    file = write_gguf(places / "v5-nano-clustering-Q4_K_M.gguf", label="Q4_K_M")
    into_cache(places / "cache", row.gguf_repo.format(task="clustering"), COMMIT, {file.name: file})
    assert "retrieval" in str(agree())
    assert "clustering" in str(agree(tasks=["clustering"]))
    assert "clustering" in str(agree(weights="Q4_K_M"))
    assert agree(backend="mlx") == base
    mine = converted(places / "store" / "mine", published["nano"], "mlx", "8bit")
    assert agree() == mine
    assert agree(weights="8bit") == mine
    assert agree(backend="llama") != mine
    engines("llama")
    assert "retrieval" in str(agree())
    with pytest.raises(ModelNotFound, match="Here, and not what was asked for: local store, .* .retrieval 8bit.;"):
        find.path("v5-nano", tasks=["classification"])


def test_path_is_not_misled_by_names(places, published, monkeypatch):
    mine = converted(places / "store" / "mine.gguf", published["nano"], "mlx", "8bit")
    assert find.path("v5-nano", backend="mlx") == mine
    with pytest.raises(UsageError, match="unknown model ''"):
        find.path("")
    with pytest.raises(UsageError, match="unknown backend 'torch'"):
        find.path("v5-nano", backend="torch")
    monkeypatch.chdir(places)
    (places / "v5-nano").mkdir()
    assert find.path("v5-nano") == Path("v5-nano"), "a folder in the current directory comes before a name"


def test_the_command_that_fetches_has_what_was_asked_for(engines):
    for request, options in (
        ({}, ""),
        ({"tasks": ["clustering"]}, " --task clustering"),
        ({"weights": "Q4_K_M"}, " --weights Q4_K_M"),
        ({"weights": "q8_0"}, ""),
        ({"backend": "mlx"}, " --backend mlx"),
    ):
        with pytest.raises(ModelNotFound, match=f"`python -m jina_local models pull {NANO}{options}` "):
            find.find("v5-nano", **request)


def test_the_command_that_converts_has_the_type_that_was_asked_for(places):
    for label, option in ((None, ""), ("Q4_K_M", " --type Q4_K_M")):
        with pytest.raises(ModelNotFound) as error:
            find.find("v3", backend="llama", weights=label)
        home = places / "store" / "jina-embeddings-v3"
        assert f'`python -m convert gguf jina-embeddings-v3 "{home}" --task all{option}`' in str(error.value)
