"""integrations/ray.py on a local Ray: every row comes out once, with its vector, also if an actor is killed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from jina_local import load
from jina_local.errors import EngineMissing, JinaError, NonFiniteError, UsageError

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


@pytest.fixture(scope="module")
def ray():
    """A local Ray with three CPUs."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'jina_local[ray]'")
    pytest.importorskip("ray.data", reason="ray.data is not installed: pip install 'jina_local[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    ray.init(num_cpus=3, include_dashboard=False, logging_level="ERROR", runtime_env=environment)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield ray
    ray.shutdown()


@pytest.fixture
def texts(tmp_path):
    """A Parquet file of 2,000 texts in 20 row groups."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "texts.parquet"
    table = pa.table({"id": list(range(2000)), "body": [f"text {i}" for i in range(2000)]})
    pq.write_table(table, path, row_group_size=100)
    return path


def test_two_actors_of_which_one_is_killed(ray, texts, tmp_path):
    import pyarrow.parquet as pq

    from jina_local.integrations.ray import Embed

    killed = tmp_path / "killed"

    class Mortal(Embed):
        def __call__(self, batch):
            if batch.column("id")[0].as_py() >= 1000 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(batch).append_column("process", [[os.getpid()] * len(batch)])

    data = ray.data.read_parquet(str(texts))
    arguments = {"column": "body", "truncate_dim": 128, "deterministic": True}
    Mortal.over(data, "pico", actors=2, batch_size=32, **arguments).write_parquet(str(tmp_path / "vectors"))
    table = pq.read_table(tmp_path / "vectors").sort_by("id")
    assert killed.exists()
    assert table.column("id").to_pylist() == list(range(2000))
    assert len(set(table.column("process").to_pylist())) >= 2
    assert table.column("truncated").to_pylist() == [False] * 2000
    vectors = np.array(table.column("embedding").to_pylist(), np.float32)
    with load("pico") as model:
        expected = model.encode(table.column("body").to_pylist(), truncate_dim=128, deterministic=True)
    assert np.array_equal(vectors, expected)


def test_actors_that_take_all_cpus_are_refused(ray, texts):
    from jina_local.integrations.ray import Embed

    data = ray.data.read_parquet(str(texts))
    with pytest.raises(UsageError, match="actors=3 with cpus=1 leave none of 3 CPUs .* Possible: actors=2, or"):
        Embed.over(data, "pico", actors=3)
    with pytest.raises(UsageError, match="Possible: actors=1"):
        Embed.over(data, "pico", actors=2, cpus=2)


def test_rows_without_a_text_or_a_vector(ray, monkeypatch):
    import pyarrow as pa

    from jina_local.integrations import ray as integration

    from ..fakes import FakeEmbedder

    monkeypatch.setattr(integration, "load", lambda *_, **settings: FakeEmbedder(**settings))
    texts = ["a", None, FakeEmbedder.BROKEN, "x" * 101]
    table = pa.table({"text": texts, "other": [1, 2, 3, 4]})
    out = integration.Embed("pico", errors="skip", precision="ubinary")(table)
    a, _, cut = FakeEmbedder().embed(["a", "b", "x" * 101], precision="ubinary").vectors.tolist()
    assert out.column_names == ["text", "other", "embedding", "truncated"]
    assert out.column("embedding").to_pylist() == [a, None, None, cut]
    assert out.column("truncated").to_pylist() == [False, False, False, True]
    embed = integration.Embed("pico")
    with pytest.raises(UsageError, match="1 rows have no 'text'; errors='skip' gives them null"):
        embed(table)
    with pytest.raises(NonFiniteError):
        embed(table.slice(2))
    with pytest.raises(UsageError, match=r"the data set has no column 'text'\. It has: other"):
        embed(table.drop_columns(["text"]))
    with pytest.raises(UsageError, match="has a column 'embedding' already"):
        embed(out)
    with pytest.raises(UsageError, match="unknown task 'retrival'"):
        integration.Embed("pico", task="retrival")
    with pytest.raises(UsageError, match=r"errors 'ignore' is unknown\. Possible: 'fail', 'skip'"):
        integration.Embed("pico", errors="ignore")


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "jina_local.integrations.ray", raising=False)
    with pytest.raises(EngineMissing, match=r"needs Ray: pip install 'jina_local\[ray\]'"):
        import jina_local.integrations.ray  # noqa: F401
    assert issubclass(EngineMissing, JinaError)
