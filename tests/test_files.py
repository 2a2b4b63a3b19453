"""Files: written as a whole or not at all, read only where they are regular and not too large."""

import os
from pathlib import Path

import pytest

from dreamda_aug.errors import ExpansionError, StorageError
from dreamda_aug.files import format_bytes, local_path, open_file, read_json, write_atomically


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExpansionError, match="could not be written .*run the same command again"):
        write_atomically(tmp_path / "folder", b"new")
    assert path.read_bytes() == b"old" and sorted(p.name for p in tmp_path.iterdir()) == [
        "file", "folder"]


@pytest.mark.parametrize("place", ["out", "../s3:/x", "C:/out", "a:b/c", "hf:user/name", Path("x")])
def test_a_local_path_stays_as_it_is(place):
    assert local_path(place, "out", "") == Path(place)


@pytest.mark.parametrize("place, url", [
    ("s3://bucket/x", "s3://bucket/x"), (Path("s3://bucket/x"), "s3://bucket/x"),
    ("s3:/bucket/x", "s3://bucket/x"), (Path("memory://a"), "memory://a"),
    ("file:///a/b", "file:///a/b"),
])
def test_a_url_is_no_local_path_even_after_a_path_has_taken_a_slash_from_it(place, url):
    with pytest.raises(ValueError, match=f"out must be a path on this machine, got the URL '{url}'"
                                         "; do this instead."):
        local_path(place, "out", "do this instead")


@pytest.mark.parametrize("read", [open_file, read_json])
def test_what_is_no_regular_file_is_refused_without_waiting_for_it(tmp_path, read):
    os.mkfifo(tmp_path / "fifo")  # opening it would wait for a writer
    for path, kind in ((tmp_path / "fifo", "a FIFO"), (Path("/dev/zero"), "device"),
                       (tmp_path, "a folder")):
        with pytest.raises(StorageError, match=f"{path}: expected a regular file, found .*{kind}"):
            read(path)
    with pytest.raises(FileNotFoundError, match="nothing: expected a regular file, found nothing"):
        read(tmp_path / "nothing")


def test_json_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(3_000_000_000)
    with pytest.raises(StorageError, match=r"sparse: expected at most 100\.0 MB, found more"):
        read_json(path)


def test_sizes_read_well():
    assert [format_bytes(n) for n in (512, 2_600_000, 3 * 10**12)] == ["512 B", "2.6 MB", "3.0 TB"]
