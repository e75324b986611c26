"""The type of weights that is taken if none is asked for: by the machine, said with its reason, never in the way."""

from __future__ import annotations

import pytest

from jina_local import doctor, registry
from jina_local.errors import ModelNotFound
from jina_local.store import default_weights, find, hub

from .. import standin_hub, tiny
from ..layout_files import COMMIT, SHAPE, write_gguf

ROW = registry.lookup("v5-nano")
RETRIEVAL = ROW.gguf_repo.format(task="retrieval")
CLUSTERING = ROW.gguf_repo.format(task="clustering")
PINNED = ROW.revisions[RETRIEVAL]
TABLE = dict(default_weights.TABLE)  # before conftest.py makes it the same everywhere
Q6 = TABLE["x86"]


@pytest.fixture
def on_x86(monkeypatch):
    monkeypatch.setitem(default_weights.TABLE, "x86", Q6)
    monkeypatch.setattr(default_weights.platform, "machine", lambda: "x86_64")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A hub with nano's retrieval in Q8_0 and Q6_K, and its clustering in Q8_0 alone."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "JINA_LOCAL_OFFLINE", "HF_TOKEN", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JINA_LOCAL_HOME", str(tmp_path / "store"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with standin_hub.serving() as standin:
        monkeypatch.setenv("HF_ENDPOINT", standin.url)
        tiny.write(tmp_path / "checkpoint", "nano", config=SHAPE)
        standin.add_folder(ROW.repo, ROW.revision, tmp_path / "checkpoint")
        for repo, commit, task, types in (
            (RETRIEVAL, PINNED, "retrieval", ("Q8_0", "Q6_K")),
            (CLUSTERING, COMMIT, "clustering", ("Q8_0",)),
        ):
            names = {f"v5-nano-{task}-{label}.gguf": label for label in types}
            standin.add(
                repo, commit, {name: write_gguf(tmp_path / name, label=label) for name, label in names.items()}
            )
        yield standin


@pytest.mark.parametrize(
    ("machine", "label"), [("x86_64", "Q6_K"), ("AMD64", "Q6_K"), ("arm64", "Q8_0"), ("aarch64", "Q8_0")]
)
def test_the_default_follows_the_machine(machine, label, on_x86, monkeypatch):
    monkeypatch.setattr(default_weights.platform, "machine", lambda: machine)
    assert default_weights.of(ROW.spec).label == label
    assert default_weights.of(registry.lookup("reranker-v3").spec).label == label
    assert default_weights.of(registry.lookup("reranker-v2").spec).label == "Q8_0"


def test_the_table_has_the_fast_type_for_x86_alone():
    assert {name: default.label for name, default in TABLE.items()} == {"x86": "Q6_K", "other": "Q8_0"}


def test_load_fetches_it_and_says_why(site, on_x86):
    found = find.find("v5-nano", backend="llama")
    assert found.label == "Q6_K"
    assert found.reasons[-1] == f"Q6_K was fetched, because {Q6.why}"


def test_what_is_asked_for_or_here_already_is_taken(site, on_x86):
    found = find.find("v5-nano", backend="llama", weights="Q8_0")
    assert (found.label, any("because on x86" in why for why in found.reasons)) == ("Q8_0", False)
    assert find.find("v5-nano", backend="llama").label == "Q8_0"
    assert [name for name in site.seen if "Q6_K" in name] == []


def test_a_type_that_is_not_published_for_all_tasks_gives_way_to_q8_0_aloud(site, on_x86):
    found = find.find("v5-nano", backend="llama", tasks=["clustering"])
    assert found.label == "Q8_0"
    assert found.reasons[-1] == "Q8_0 was fetched, because Q6_K is not published"
    files = hub.pull(ROW, tasks=["retrieval", "clustering"])
    assert {path.name.rpartition("-")[2] for path in files.values()} == {"Q8_0.gguf"}


def test_elsewhere_nothing_has_changed(site, monkeypatch):
    monkeypatch.setattr(default_weights.platform, "machine", lambda: "aarch64")
    found = find.find("v5-nano", backend="llama")
    assert (found.label, found.reasons[-1]) == (
        "Q8_0", f"Q8_0 was fetched, because {default_weights.TABLE['other'].why}"
    )  # fmt: skip


def test_what_is_looked_for_is_named_with_its_size(on_x86, monkeypatch, tmp_path):
    for name in ("HF_HUB_CACHE", "JINA_LOCAL_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(ModelNotFound, match=r"Looked for v5-nano-retrieval-Q6_K\.gguf.*about 0\.18 GB"):
        find.find("v5-nano", backend="llama", offline=True)
    with pytest.raises(ModelNotFound, match=r"Looked for v5-nano-retrieval-Q8_0\.gguf.*--weights Q8_0.*0\.23 GB"):
        find.find("v5-nano", backend="llama", weights="Q8_0", offline=True)


def test_doctor_says_it(on_x86):
    check = doctor._default_weights()
    assert (check.ok, check.detail) == (True, f"Q6_K, if none are here, because {Q6.why}")
