"""Files that are written as a whole or not at all, and JSON that is read with a name for it."""

from pathlib import Path

import pytest

from dreamda_aug.errors import ExpansionError
from dreamda_aug.files import local_path, write_atomically


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExpansionError, match="could not be written .*run the same command again"):
        write_atomically(tmp_path / "folder", b"new")
    assert path.read_bytes() == b"old" and sorted(p.name for p in tmp_path.iterdir()) == [
        "file", "folder"]


@pytest.mark.parametrize("place", ["out", "/tmp/out", "../s3:/x", "C:/out", "C:\\out", "a:b/c",
                                   "hf:user/name", ".", Path("x/y")])
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
