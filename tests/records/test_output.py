"""output.py: a place is written whole or not at all, and standard output goes by many names."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys

import pytest

from jina_local.errors import OutputError
from jina_local.records import output


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out.npy"
    out.write_bytes(b"old")
    with contextlib.suppress(KeyboardInterrupt), output.destination(str(out), io.BytesIO()) as file:
        file.write(b"half")
        assert out.read_bytes() == b"old"
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["out.npy"]
    assert out.read_bytes() == b"old"
    with output.destination(str(out), io.BytesIO()) as file:
        file.write(b"new")
    assert out.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["out.npy"]


def test_a_link_stays_a_link(tmp_path):
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    real.write_bytes(b"old")
    link.symlink_to(real)
    with output.destination(str(link), io.BytesIO()) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_devices_are_written_to_and_not_replaced():
    with output.destination(os.devnull, io.BytesIO()) as file:
        file.write(b"gone")
    assert not os.path.isfile(os.devnull)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_an_error_of_output():
    with (
        pytest.raises(OutputError, match=r"/dev/full: the disk is full .* not complete"),
        output.destination("/dev/full", io.BytesIO()) as file,
    ):
        file.write(b"x" * 100_000)


def test_places_that_cannot_be_written_are_refused_before_any_work(tmp_path):
    with pytest.raises(OutputError, match="is a folder; give a file name"):
        output.check_target(str(tmp_path))
    with pytest.raises(OutputError, match=r"there is no folder .*none; create it first"):
        output.check_target(str(tmp_path / "none" / "out.csv"))
    output.check_target(str(tmp_path / "out.csv"))
    output.check_target(None)


posix = pytest.mark.skipif(not os.path.exists("/dev/fd/1"), reason="this system has no /dev/fd")


@posix
def test_names_of_descriptors_are_known_by_what_they_are_called(tmp_path):
    own = f"/proc/{os.getpid()}/fd/1"
    names = [
        "/dev/stdout",
        "/dev/fd/1",
        "/dev/../dev/stdout",
        *(["/proc/self/fd/1", own] if os.path.exists(own) else []),
    ]
    assert [output.descriptor(name) for name in names] == [1] * len(names)
    assert all(map(output.is_stdout, [None, "-", *names]))
    link = tmp_path / "out.jsonl"
    link.symlink_to("/dev/stdout")
    assert output.is_stdout(str(link))
    assert (output.descriptor("/dev/stderr"), output.descriptor("/dev/fd/63")) == (2, 63)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for name in ("1", "out.jsonl2", "/dev/fd/x", "/dev/null", str(loop), "a\0b", ""):
        assert output.descriptor(name) is None, name


@posix
def test_other_descriptors_are_written_to_from_where_they_stand(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        log.write(b"before ")
        log.flush()
        name = f"/dev/fd/{log.fileno()}"
        output.check_target(name)
        with output.destination(name, io.BytesIO()) as file:
            file.write(b"data")
        log.write(b" after")
    assert (tmp_path / "log").read_bytes() == b"before data after"


def test_what_a_stopped_run_leaves(tmp_path):
    path = tmp_path / "out.csv"
    assert output.left_by_a_stop(str(path)) == f"{path} was not written"
    path.write_bytes(b"old")
    assert output.left_by_a_stop(str(path)) == f"{path} is as it was before"
    assert output.left_by_a_stop(os.devnull) == f"{os.devnull} has what was written so far"
    assert output.left_by_a_stop(None) is None


@posix
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1"])
def test_standard_output_by_name_is_not_what_descriptor_1_leads_to_meanwhile(name):
    code = (
        "from jina_local import console\n"
        "from jina_local.records.output import destination\n"
        f"with console.quiet_stdout() as stdout, destination({name!r}, stdout) as file:\n"
        "    print('talk')\n"
        "    file.write(b'data')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=30, check=False)
    assert (done.stdout, done.stderr) == (b"data", b"talk\n")
