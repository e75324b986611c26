"""Fetching from a stand-in hub on loopback, with the faults that networks and disks have; and what is then here."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple

import pytest

pytest.importorskip("gguf", reason="GGUF test files are written with it: pip install 'jina_local[convert]'")

from jina_local import registry
from jina_local.errors import ModelDamaged, ModelNotFound, OutputError, UsageError
from jina_local.store import find, hub, hub_cache, inventory, places

from .. import standin_hub, tiny
from ..layout_files import COMMIT, NANO, SHAPE, converted, write_gguf

ROW = registry.lookup("v5-nano")
RETRIEVAL = ROW.gguf_repo.format(task="retrieval")
CLUSTERING = ROW.gguf_repo.format(task="clustering")
PINNED = ROW.revisions[RETRIEVAL]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What is published: the checkpoint and some GGUF files."""
    root = tmp_path_factory.mktemp("files")
    tiny.write(root / "checkpoint", "nano", config=SHAPE)
    for task in ("retrieval", "clustering"):
        for label in ("Q8_0", "Q4_K_M"):
            write_gguf(root / f"v5-nano-{task}-{label}.gguf", label=label)
    return root


@pytest.fixture
def site(files, tmp_path, monkeypatch):
    """A hub with the nano model, and empty places that lead to it."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "JINA_LOCAL_OFFLINE", "HF_TOKEN", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JINA_LOCAL_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with standin_hub.serving() as standin:
        monkeypatch.setenv("HF_ENDPOINT", standin.url)
        standin.add_folder(ROW.repo, ROW.revision, files / "checkpoint")
        standin.add(
            RETRIEVAL, PINNED, {p.name: p for p in files.glob("*-retrieval-*.gguf")} | {"README.md": b"hello"}
        )
        standin.add(CLUSTERING, COMMIT, {p.name: p for p in files.glob("*-clustering-*.gguf")})
        yield standin


def cache():
    return hub_cache.cache_folder()


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# --- a list of files that is none


def replaced(**members):
    return lambda body: {**body, **members}


def first_file(**members):
    return lambda body: {**body, "siblings": [{**body["siblings"][0], **members}, *body["siblings"][1:]]}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda body: [], "cannot be read"),
        (lambda body: {k: v for k, v in body.items() if k != "id"}, r"cannot be read \(KeyError\('id'\)\)"),
        (replaced(siblings=5), "cannot be read"),
        (replaced(siblings=[5]), "cannot be read"),
        (replaced(siblings=[{}]), r"cannot be read \(KeyError\('rfilename'\)\)"),
        (first_file(lfs={"size": 1}), "cannot be read"),
        (first_file(rfilename=["x"]), r"rfilename is \['x'\]; expected a text"),
        (first_file(size="big"), "size of '.*' is 'big'; expected a whole number"),
        (replaced(sha=None), "sha is None; expected a text"),
        (replaced(sha="../../../x"), r"sha is '\.\./\.\./\.\./x'; expected a commit of 40 hex digits"),
        (replaced(siblings=None), "has no v5-nano-retrieval-Q8_0.gguf. It has: no files"),
        (lambda body: {**body, "siblings": [{**s, "blobId": 5, "lfs": None} for s in body["siblings"]]}, "no files"),
    ],
)  # fmt: skip
def test_a_listing_without_its_members_is_named(site, change, told):
    site.on_listing = change
    with pytest.raises((ModelDamaged, ModelNotFound), match=told):
        hub.pull(ROW)
    assert not (cache() / "models--jinaai--x").exists()


# --- links that lead out of the cache


def test_a_snapshot_with_a_link_out_of_the_cache_is_not_opened(site, tmp_path):
    path = hub.pull(ROW)["retrieval"]
    outside = shutil.copy(path, tmp_path / "outside.gguf")
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(
        ModelNotFound, match="hub cache, .* \\(damaged: .*Q8_0.gguf: is a link to .*outside.gguf, which lies outside"
    ):
        find.find("v5-nano", offline=True, backend="llama")
    for given in (path, path.parent, os.path.relpath(path)):
        with pytest.raises(ModelDamaged, match=r"Q8_0.gguf: is a link to .*outside.gguf, which lies outside"):
            find.find(given, offline=True, backend="llama")
    path.unlink()
    hub.pull(ROW)
    assert find.find(path, offline=True).revision == PINNED
    assert find.find("v5-nano", offline=True, backend="llama").files["retrieval"] == path


# --- what is fetched


def test_llama_fetches_the_default_tasks_file_at_the_pinned_commit_and_nothing_else(site, capfd):
    files = hub.pull(ROW)
    assert {task: path.name for task, path in files.items()} == {"retrieval": "v5-nano-retrieval-Q8_0.gguf"}
    assert hub_cache.commit_of(files["retrieval"]) == PINNED
    path = f"/{RETRIEVAL}/resolve/{PINNED}/v5-nano-retrieval-Q8_0.gguf"
    assert site.seen == [f"GET /api/models/{RETRIEVAL}/revision/{PINNED}", f"GET {path}", f"HEAD {path}"]
    assert capfd.readouterr() == ("", "")


def test_several_tasks_another_type_and_a_repository_without_a_pinned_commit(site, caplog):
    files = hub.pull(ROW, tasks=["clustering", "retrieval"], weights="q4_k_m")
    assert {t: p.name for t, p in files.items()} == {
        "clustering": "v5-nano-clustering-Q4_K_M.gguf",
        "retrieval": "v5-nano-retrieval-Q4_K_M.gguf",
    }
    assert [hub_cache.commit_of(path) for path in files.values()] == [COMMIT, PINNED]
    (pins,) = [text for text in caplog.messages if "pinned" in text]
    assert pins == (
        f"{CLUSTERING} has no pinned commit: main was fetched, which is {COMMIT}. To get these files again: "
        f'revision="{COMMIT}", or --revision {COMMIT}'
    )
    caplog.clear()
    assert hub.pull(ROW, tasks=["clustering"], weights="q4_k_m", revision=COMMIT)["clustering"] == files["clustering"]
    assert "pinned" not in caplog.text


def test_what_is_fetched_is_said_before_it_is_fetched(site, caplog):
    said = []
    site.on_file = lambda name: said.append((name, list(caplog.messages)))
    hub.pull(ROW)
    size = len(site.repos[RETRIEVAL][PINNED]["v5-nano-retrieval-Q8_0.gguf"])
    asking, fetching = caplog.messages
    assert asking == f"{NANO}: asking {site.url} for {RETRIEVAL}"
    assert fetching == (
        f"{NANO}: fetching Q8_0 weights, {size / 1e6:.1f} MB, into {cache()}. Licence of the weights: CC BY-NC 4.0, "
        "non-commercial"
    )
    assert said[0] == ("v5-nano-retrieval-Q8_0.gguf", [asking, fetching])
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    caplog.clear()
    hub.pull(ROW)
    assert "all files are here, and are compared with the hub's" in caplog.messages[1]
    hub.pull(ROW, "mlx", tasks=["retrieval"])
    assert "fetching the published checkpoint, " in caplog.messages[-1]


def test_mlx_fetches_the_checkpoint_with_all_adapters_or_those_asked_for(site):
    files = hub.pull(ROW, "mlx", tasks=["clustering"])
    assert list(files) == ["clustering"]
    here = names(files["clustering"])
    assert {"config.json", "tokenizer.json", "model.safetensors", "modules.json"} <= set(here)
    assert [n for n in here if n.startswith("adapters/")] == [
        "adapters/clustering/adapter_config.json",
        "adapters/clustering/adapter_model.safetensors",
    ]
    files = hub.pull(ROW, "mlx")
    assert tuple(files) == ROW.spec.tasks
    assert len([n for n in names(files["retrieval"]) if n.startswith("adapters/")]) == 8


def test_shards_are_fetched_with_their_index(site, tmp_path):
    source = tiny.write(tmp_path / "sharded", "nano", config=SHAPE, shards=2, tasks=("retrieval",))
    site.add_folder(ROW.repo, ROW.revision, source)
    hub.pull(ROW, "mlx", tasks=["retrieval"])
    found = find.find("v5-nano", backend="mlx", offline=True)
    assert len(list(found.files["retrieval"].glob("model-0000?-of-00002.safetensors"))) == 2


def test_find_fetches_once_and_then_finds_offline(site):
    found = find.find("v5-nano", backend="llama")
    assert (found.label, found.revision, list(found.files)) == ("Q8_0", PINNED, ["retrieval"])
    assert any(f"fetched from {site.url}, commit {PINNED}" in why for why in found.reasons)
    site.seen.clear()
    again = find.find("v5-nano", backend="llama")
    assert again.files == found.files
    assert any("found in the hub cache" in why for why in again.reasons)
    assert find.find(f"{NANO}:Q8_0", offline=True).files == found.files
    assert site.seen == []
    both = find.find("v5-nano", backend="llama", tasks=["retrieval", "clustering"])
    assert sorted(both.files) == ["clustering", "retrieval"]
    assert find.find("v5-nano", backend="mlx").form == "checkpoint"
    assert find.find("v5-nano", source=True, offline=True).form == "checkpoint"


def test_another_revision_by_commit_and_by_branch(site, files):
    other = "f" * 40
    site.add(RETRIEVAL, other, {"v5-nano-retrieval-Q8_0.gguf": files / "v5-nano-retrieval-Q4_K_M.gguf"})
    assert hub_cache.commit_of(hub.pull(ROW)["retrieval"]) == PINNED
    assert hub_cache.commit_of(hub.pull(ROW, revision=other)["retrieval"]) == other
    assert find.find("v5-nano", backend="llama", revision=other, offline=True).revision == other
    assert find.find("v5-nano", backend="llama", offline=True).revision == PINNED
    shutil.rmtree(cache())
    assert find.find("v5-nano", backend="llama", revision="main").revision == other


# --- faults of the network


def test_a_cut_download_is_taken_up_where_it_broke(site, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    site.cut_once["v5-nano-retrieval-Q8_0.gguf"] = 5500
    files = hub.pull(ROW)
    gets = [line for line in site.seen if line.startswith("GET /jinaai")]
    assert len(gets) == 2
    assert gets[1].endswith("bytes=5000-")
    assert find.find(files["retrieval"]).label == "Q8_0"


def test_a_file_that_the_repository_has_not_lists_those_it_has(site):
    with pytest.raises(ModelNotFound) as error:
        hub.pull(ROW, weights="Q6_K")
    text = str(error.value)
    assert f"{RETRIEVAL} at commit {PINNED} has no v5-nano-retrieval-Q6_K.gguf" in text
    assert "It has: v5-nano-retrieval-Q4_K_M.gguf, v5-nano-retrieval-Q8_0.gguf." in text
    site.add(ROW.repo, ROW.revision, {"README.md": b"", "model.onnx": b""})
    with pytest.raises(ModelNotFound, match=r"has no config\.json, tokenizer\.json, model\.safetensors, adapters"):
        hub.pull(ROW, "mlx")


def test_a_file_that_vanishes_between_the_listing_and_the_fetch(site):
    site.vanished.add("v5-nano-retrieval-Q8_0.gguf")
    with pytest.raises(ModelNotFound, match=r"answered 404 to .*/v5-nano-retrieval-Q8_0\.gguf"):
        hub.pull(ROW)


@pytest.mark.parametrize("task", ["retrieval", "text-matching"])
def test_a_repository_or_revision_that_is_not_there(site, task):
    with pytest.raises(ModelNotFound) as error:
        hub.pull(ROW, tasks=[task], revision="0" * 40)
    if task == "retrieval":
        assert f"{site.url} has the repository and not this revision. Its main is at {PINNED}." in str(error.value)
    else:
        assert "has no such repository, or it is private" in str(error.value)


def test_a_gated_repository_says_how_to_get_in(site):
    site.gated.add(RETRIEVAL)
    with pytest.raises(ModelNotFound, match=f"Accept them at {site.url}/{RETRIEVAL} and set HF_TOKEN"):
        hub.pull(ROW)


def test_a_hub_in_trouble(site):
    site.down = 503
    with pytest.raises(ModelNotFound, match="the hub answered 503"):
        hub.pull(ROW)


def test_bytes_other_than_announced_are_removed_and_fetched_anew_next_time(site):
    site.swapped.add("v5-nano-retrieval-Q8_0.gguf")
    with pytest.raises(ModelDamaged) as error:
        hub.pull(ROW)
    text = str(error.value)
    expected = standin_hub.digest("x.gguf", site.repos[RETRIEVAL][PINNED]["v5-nano-retrieval-Q8_0.gguf"])
    assert "v5-nano-retrieval-Q8_0.gguf: has the SHA-256 " in text
    assert f", expected {expected}." in text
    assert f"not the bytes that {site.url} announced" in text
    assert [n for n in names(cache()) if n.endswith((".gguf", expected))] == []
    with pytest.raises(ModelNotFound):
        find.find("v5-nano", backend="llama", offline=True)
    site.swapped.clear()
    assert find.find("v5-nano", backend="llama").label == "Q8_0"


def test_a_small_file_is_compared_by_its_git_blob_id(site):
    site.swapped.add("config.json")
    with pytest.raises(ModelDamaged, match=r"config\.json: has the git blob id [0-9a-f]{40}, expected [0-9a-f]{40}"):
        hub.pull(ROW, "mlx")


@pytest.mark.parametrize("damage", ["content", "length"])
def test_a_file_that_went_bad_in_the_cache_is_seen_by_verify_and_healed_by_pull(site, damage):
    path = hub.pull(ROW)["retrieval"]
    (good,) = inventory.verify("v5-nano")
    assert (good.path, good.checked, good.unknown, good.faults) == (path.parent, 1, 0, ())
    with path.open("r+b") as file:
        file.truncate(2000) if damage == "length" else file.write(b"GGUX")
    (bad,) = inventory.verify("v5-nano")
    assert len(bad.faults) == 1
    assert f"{path}: has the SHA-256" in bad.faults[0]
    assert inventory.verify(path.parent)[0].faults == bad.faults
    hub.pull(ROW)
    assert inventory.verify("v5-nano")[0].faults == ()


def test_without_a_network_the_error_says_what_was_asked_and_how_to_go_on(site, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound, and not listening
        monkeypatch.setenv("HF_ENDPOINT", url)
        start = time.monotonic()
        with pytest.raises(ModelNotFound) as error:
            find.find("v5-nano", backend="llama")
    text = str(error.value)
    assert text.startswith(f"{RETRIEVAL} at revision {PINNED}: was asked of {url}, which could not be reached")
    assert "refused" in text
    assert "Try again when there is a network" in text
    assert "can be given by its path" in text
    assert time.monotonic() - start < 5


def test_the_environments_offline_is_heard(site, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFound, match=r"may not be fetched \(offline\)"):
        find.find("v5-nano", backend="llama")
    assert site.seen == []
    # The library reads its switch at import: a process of its own shows what a caller sees who overrules it.
    script = "from jina_local.store.find import find; find('v5-nano', backend='llama', offline=False)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "ModelNotFound" in done.stderr
    assert "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set" in done.stderr
    assert site.seen == []


def test_a_process_of_its_own_fetches_with_nothing_but_the_environment(site):
    script = """
from jina_local.store import find
print(find.find("v5-nano:Q4_K_M").label)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "Q4_K_M\n"
    asking, fetching = done.stderr.splitlines()
    assert asking == f"{NANO}: asking {site.url} for {RETRIEVAL}"
    assert fetching.startswith(f"{NANO}: fetching Q4_K_M weights, ")


# --- what is not sent, shown or left behind


def test_nothing_is_told_to_the_hub_beyond_the_request(site, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    hub.pull(ROW)
    assert constants.HF_HUB_DISABLE_TELEMETRY is False
    assert all("torch" not in agent and "agent/" not in agent for agent in site.agents)
    assert [line for line in site.seen if "agent-harnesses" in line or "telemetry" in line] == []


def test_progress_is_shown_on_stderr_unless_refused(site, capfd, monkeypatch):
    monkeypatch.setenv("TQDM_POSITION", "-1")  # makes the library show bars without a terminal
    hub.pull(ROW, show_progress=False)
    assert capfd.readouterr() == ("", "")
    hub.pull(ROW, weights="Q4_K_M")
    out, err = capfd.readouterr()
    assert out == ""
    assert "v5-nano-retrieval-Q4_K_M.gguf" in err


def test_a_full_disk_is_seen_before_anything_is_fetched(site, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    with pytest.raises(OutputError, match=r"MB are to be fetched, 0.0 MB are free.*HF_HUB_CACHE"):
        hub.pull(ROW)
    assert not any("resolve" in line for line in site.seen)


def test_a_cache_that_cannot_be_written(site, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match=r"cannot be written \(Not a directory\). HF_HUB_CACHE sets another place"):
        hub.pull(ROW)


def test_wrong_arguments_are_refused_before_the_hub_is_asked(site, monkeypatch):
    with pytest.raises(UsageError, match="unknown task 'poetry'"):
        hub.pull(ROW, tasks=["poetry"])
    with pytest.raises(UsageError, match="unknown engine 'torch'. Possible: llama, mlx, onnx"):
        hub.pull(ROW, "torch")
    with pytest.raises(UsageError, match="revision 'a b' is not a commit"):
        hub.pull(ROW, revision="a b")
    assert site.seen == []
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")
    with pytest.raises(UsageError, match="HF_ENDPOINT is 'hub.example'; expected a URL"):
        hub.pull(ROW)


# --- what is here


def test_listing_path_verify_and_remove_over_both_places(site, files, tmp_path):
    assert {place.where for row in registry.PUBLISHED for place in places.of(row)} == {"package"}
    for ask in (find.path, inventory.remove, inventory.verify):
        with pytest.raises(ModelNotFound, match="on this machine"):
            ask("v5-nano")
    hub.pull(ROW, "mlx", tasks=["retrieval"])
    hub.pull(ROW, tasks=["clustering"])
    folder = converted(tmp_path / "store" / "mine", files / "checkpoint", "mlx", "8bit")
    # A copy of a repository has the same commits.
    stranger = cache() / "models--someone--else" / "snapshots" / COMMIT / "config.json"
    stranger.parent.mkdir(parents=True)
    stranger.write_text("{}")
    there = places.of(ROW)
    assert [(p.where, p.holds) for p in there] == [
        ("local store", ("retrieval 8bit",)),
        ("hub cache", ("retrieval adapter",)),
        ("hub cache", ("clustering Q8_0",)),
    ]
    published = [p.stat().st_size for p in (files / "checkpoint").rglob("*") if p.is_file()]
    assert 0.5 * sum(published) < there[1].size < sum(published)
    assert there[2].size == (files / "v5-nano-clustering-Q8_0.gguf").stat().st_size
    assert find.path("v5-nano") == folder
    assert [v.faults for v in inventory.verify("v5-nano")] == [(), (), ()]
    (folder / "model.safetensors").write_bytes(bytes((folder / "model.safetensors").stat().st_size))
    assert inventory.verify(folder)[0].faults == (
        f"{folder / 'model.safetensors'}: its content has changed since it was written",
    )
    gone = inventory.remove("v5-nano")
    assert gone == there
    assert not folder.exists()
    assert stranger.exists()
    assert not list(cache().glob("models--jinaai*"))
    assert places.of(ROW) == []


def test_a_folder_without_digests_cannot_be_verified(site, files):
    with pytest.raises(ModelNotFound, match=r"no digests are known for it, because it has no manifest\.json"):
        inventory.verify(files / "checkpoint")


# --- a download that is cut short, slow or contended


def small_pieces(monkeypatch):
    """Keep what arrives by 1000 bytes, where the library keeps it by 10 MB."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)


SCRIPT = """
import sys
import threading
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1000
from jina_local.cli import main
sys.argv[1:] = ["models", "pull", "v5-nano", "--backend", "llama"]
main.run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_an_interrupted_fetch_keeps_what_arrived_and_the_next_one_goes_on(site, capfd):
    name = "v5-nano-retrieval-Q8_0.gguf"
    whole = site.repos[RETRIEVAL][PINNED][name]
    site.pace, site.piece = 0.05, 5000
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            while not [part for part in hub_cache.unfinished(RETRIEVAL) if part.stat().st_size > 5000]:
                assert child.poll() is None, child.stderr.read()
                time.sleep(0.02)
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=20)
        finally:
            child.kill()
    assert (child.returncode, out) == (130, "")
    assert f"{NANO}: what has arrived is kept; the next fetch goes on from there" in err
    assert "Traceback" not in err
    (part,) = hub_cache.unfinished(RETRIEVAL)
    size = part.stat().st_size
    assert 5000 < size < len(whole)
    assert part.read_bytes() == whole[:size]
    (place,) = places.of(ROW)
    assert (place.path, place.size, place.files) == (part.parent, size, {})
    with pytest.raises(ModelNotFound, match="hub cache, .*blobs .a part of a file: fetch it again to go on"):
        find.find("v5-nano", backend="llama", offline=True)
    with pytest.raises(ModelNotFound, match="nothing of it is on this machine"):
        inventory.verify("v5-nano")
    site.pace = 0
    site.seen.clear()
    assert hub.pull(ROW)["retrieval"].read_bytes() == whole
    assert f"GET /{RETRIEVAL}/resolve/{PINNED}/{name} bytes={size}-" in site.seen
    assert hub_cache.unfinished(RETRIEVAL) == []


def test_what_is_here_of_a_file_is_said(site, caplog, monkeypatch):
    small_pieces(monkeypatch)
    part = hub_cache.root_of(RETRIEVAL) / "blobs"
    part.mkdir(parents=True)
    whole = site.repos[RETRIEVAL][PINNED]["v5-nano-retrieval-Q8_0.gguf"]
    part = part / f"{standin_hub.digest('x.gguf', whole)}.incomplete"
    part.write_bytes(whole[:60_000])
    hub.pull(ROW)
    assert f"{len(whole) / 1e6:.1f} MB (0.1 MB of it are here), into" in caplog.text


@pytest.mark.parametrize("content", [b"x" * 70_000_000, b"x" * 5000])
def test_a_part_that_is_not_of_the_file_does_no_lasting_harm(site, content):
    whole = site.repos[RETRIEVAL][PINNED]["v5-nano-retrieval-Q8_0.gguf"]
    blobs = hub_cache.root_of(RETRIEVAL) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{standin_hub.digest('x.gguf', whole)}.incomplete").write_bytes(content)
    if len(content) < len(whole):
        with pytest.raises(ModelDamaged, match="has the SHA-256"):
            hub.pull(ROW)
    assert hub.pull(ROW)["retrieval"].read_bytes() == whole


def test_processes_that_fetch_the_same_file_fetch_it_once(site):
    site.pace, site.piece = 0.01, 5000
    script = "from jina_local.store import find; print(find.find('v5-nano', backend='llama').label)"
    children = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for child in children:
        out, err = child.communicate(timeout=60)
        assert (child.returncode, out) == (0, "Q8_0\n"), err
    assert len([line for line in site.seen if line.startswith(f"GET /{RETRIEVAL}/resolve")]) == 1


def test_a_hub_that_never_answers_is_given_up(site, monkeypatch, caplog):
    monkeypatch.setattr(hub, "_SECONDS", 0.3)
    site.silent = threading.Event()
    start = time.monotonic()
    with pytest.raises(ModelNotFound) as error:
        find.find("v5-nano", backend="llama")
    site.silent.set()
    assert 0.3 <= time.monotonic() - start < 3
    assert caplog.messages == [f"{NANO}: asking {site.url} for {RETRIEVAL}"]
    text = str(error.value)
    assert f"was asked of {site.url}, which could not be reached or broke off (no answer within 0 seconds)" in text
    assert "about 0.23 GB; CC BY-NC 4.0, non-commercial" in text
    assert "--model pico" in text


def test_a_digest_that_would_lead_out_of_the_cache_is_no_file(site, monkeypatch):
    monkeypatch.setattr(standin_hub, "digest", lambda name, content: "../" * 20 + "abcd")
    with pytest.raises(ModelNotFound, match=r"has no v5-nano-retrieval-Q8_0\.gguf"):
        hub.pull(ROW)
