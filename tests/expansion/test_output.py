"""The folder that datasets are written to."""

import os

import pytest

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.output import LocalFolder, OutputFolder, as_folder, path_from, read_bytes


@pytest.fixture
def folder(tmp_path):
    return LocalFolder(tmp_path / "out")


def test_files_come_back_and_names_are_listed(folder):
    assert isinstance(folder, OutputFolder) and folder.names() == [] and not folder.exists("a")
    folder.write("b/c.txt", [b"one", b"two"])
    folder.write("a.txt", [])
    assert read_bytes(folder, "b/c.txt") == b"onetwo" and read_bytes(folder, "a.txt") == b""
    assert folder.names() == ["a.txt", "b"] and folder.names("b") == ["c.txt"]
    folder.remove("a.txt")
    folder.remove("a.txt")
    folder.remove_folder("b")
    folder.remove_folder("b")
    assert folder.names() == []
    with pytest.raises(FileNotFoundError):
        folder.open("a.txt")


def test_a_file_is_created_once(folder):
    folder.create("a", b"first")
    folder.create("a", b"second")
    assert read_bytes(folder, "a") == b"first" and os.listdir(folder.root) == ["a"]


def test_what_is_half_written_is_no_file(folder):
    with pytest.raises(ZeroDivisionError):
        folder.write("a", (1 // 0 for _ in "x"))
    assert os.listdir(folder.root) == []
    (folder.root / ".a.dreamda-tmp").write_bytes(b"")
    assert folder.names() == []
    folder.tidy()
    assert os.listdir(folder.root) == []


def test_a_name_is_held_by_one(folder):
    with folder.claim("x/claim") as mine, folder.claim("x/claim") as other:
        assert mine and not other
    with folder.claim("x/claim") as mine:
        assert mine


def test_a_pipe_is_not_waited_for(folder):
    folder.root.mkdir()
    os.mkfifo(folder.root / "pipe")
    with pytest.raises(FileNotFoundError, match="expected a file, found something else"):
        folder.open("pipe")


def test_a_folder_is_set_aside_under_the_next_free_name(folder, tmp_path):
    for number in (1, 2):
        folder.write("a", [b""])
        folder.set_aside()
        assert (tmp_path / f"out.old{number}" / "a").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ExpansionError, match="expected a folder, found a file"):
        as_folder(tmp_path / "file").check()


def test_places_are_written_down_as_seen_from_the_folder(folder, tmp_path):
    (tmp_path / "train").mkdir()
    assert path_from(folder, str(tmp_path / "train")) == ("../train", True)
    assert path_from(folder, str(tmp_path)) == ("..", True)
    for name in ("user/model", "bundled", None):
        assert path_from(folder, name) == (name, True)
    assert path_from(folder, "/usr") == ("usr", False)
