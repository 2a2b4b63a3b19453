"""The folder that datasets are written to, on a disk and in the memory that fsspec opens."""

import os
import sys
from pathlib import Path
from unittest.mock import Mock

import fsspec
import pytest

from dreamda_aug.errors import ExpansionError, StorageError
from dreamda_aug.expansion.storage import OutputFolder


@pytest.fixture
def local(tmp_path):
    return OutputFolder(tmp_path / "out")


@pytest.fixture(params=["path", "file", "memory"])
def folder(request, tmp_path, url):
    """All kinds must do the same."""
    return OutputFolder({"path": tmp_path / "out", "file": f"file://{tmp_path}/out",
                         "memory": url}[request.param])


def test_files_come_back_and_names_are_listed(folder):
    folder.check()
    assert folder.names() == [] and folder.names("no") == [] and not folder.exists("x")
    folder.write("sub/x", [b"1", b"2"])
    folder.write("y", [])
    assert folder.names() == ["sub", "y"] and folder.names("sub") == ["x"]
    assert folder.exists("sub") and folder.read("sub/x") == b"12" and folder.read("y") == b""
    # as `printf 12 | sha256sum` says
    assert folder.digest("sub/x").startswith("6b51d431df5d7f14")
    with pytest.raises(FileNotFoundError):
        folder.open("x")
    for _ in range(2):
        folder.remove("y")
        folder.remove("sub", recursive=True)
    assert folder.names() == []


def test_what_breaks_off_while_it_is_written_is_never_seen(folder):
    def parts():
        yield b"half"
        raise KeyboardInterrupt

    for before in (None, b"old"):
        if before:
            folder.write("a/b", [before])
        with pytest.raises(KeyboardInterrupt):
            folder.write("a/b", parts())
        assert folder.names("a") == (["b"] if before else [])
    assert folder.read("a/b") == b"old"


def test_a_folder_is_set_aside_under_the_next_free_name(folder):
    for number in (1, 2):
        folder.write("a/b", [b"%d" % number])
        folder.set_aside()
        assert folder.names() == []
        assert OutputFolder(f"{folder}.old{number}").read("a/b") == b"%d" % number


@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(local):
    local.path.mkdir()
    os.mkfifo(local.path / "pipe")
    with pytest.raises(FileNotFoundError, match="expected a regular file, found a FIFO"):
        local.read("pipe")
    with pytest.raises(StorageError, match="expected a regular file"), local.lock("pipe"):
        pass


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, url):
    (tmp_path / "file").write_bytes(b"")
    fsspec.filesystem("memory").pipe_file("/bucket/out", b"file")
    for out in (tmp_path / "file", url):
        with pytest.raises(ExpansionError, match=f"{out}: expected a folder, found a file"):
            OutputFolder(out).check()


def test_a_store_that_refuses_is_named(url, monkeypatch):
    folder = OutputFolder(url)
    refuse = Mock(side_effect=PermissionError("no access"))
    monkeypatch.setattr(type(folder._fs), "put_file", refuse)
    with pytest.raises(StorageError, match=r"bucket/out/x: could not be written \(no access\)"):
        folder.write("x", [b""])


def test_what_is_no_folder_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ImportError, match=r"pip install 'dreamda_aug\[remote\]'"):
        OutputFolder("s3://bucket/out")
    with pytest.raises(ValueError, match="nowhere"):
        OutputFolder("nowhere://bucket/out")
    with pytest.raises(ValueError, match="must name a folder in the bucket"):
        OutputFolder("memory://")
    with pytest.raises(ValueError, match="out must be a path on this machine, got the URL "
                                         "'s3://bucket/out'; give a URL as text"):
        OutputFolder(Path("s3://bucket/out"))
