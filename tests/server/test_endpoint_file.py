"""The file of Elastic's endpoints: two servers share it, a change is whole or not at all, and its faults are said."""

from __future__ import annotations

import threading

import pytest

from jina_local.server.dialects import elastic
from jina_local.server.endpoint_file import EndpointFile
from jina_local.server.faults import Refused


def endpoint(name):
    return elastic.read_put("rerank", name, {"service": "jinaai", "service_settings": {"model_id": "pico"}})


def test_two_servers_with_one_file_lose_nothing(tmp_path):
    files = [EndpointFile(tmp_path / "new" / "endpoints.json") for _ in range(2)]

    def add(n):
        with files[n % 2].changing() as endpoints:
            endpoints[f"e{n}"] = endpoint(f"e{n}")

    threads = [threading.Thread(target=add, args=(n,)) for n in range(40)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert files[0].all().keys() == {f"e{n}" for n in range(40)}
    assert files[0].all() == files[1].all()


def test_a_change_that_fails_is_not_written(tmp_path):
    for file in (EndpointFile(tmp_path / "endpoints.json"), EndpointFile(None)):
        with file.changing() as endpoints:
            endpoints["e"] = endpoint("e")
        with pytest.raises(KeyError), file.changing() as endpoints:
            del endpoints["e"]
            raise KeyError
        assert list(file.all()) == ["e"]


def test_a_file_that_cannot_be_used_is_said_without_its_path(tmp_path, caplog):
    (tmp_path / "endpoints.json").mkdir()
    file = EndpointFile(tmp_path / "endpoints.json")
    for use in (file.all, lambda: file.changing().__enter__()):
        with pytest.raises(Refused, match="cannot be read; the log has more") as refused:
            use()
        assert str(tmp_path) not in str(refused.value)
        assert str(tmp_path) in caplog.text
    (tmp_path / "a-file").write_text("")
    with pytest.raises(Refused, match="cannot be written"), EndpointFile(tmp_path / "a-file" / "x").changing():
        pass
