"""Files that are written as a whole or not at all, and JSON that is read with a name for it."""

import pytest

from dreamda_aug.errors import ExpansionError
from dreamda_aug.files import write_atomically


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ExpansionError, match="could not be written .*run the same command again"):
        write_atomically(tmp_path / "folder", b"new")
    assert path.read_bytes() == b"old" and sorted(p.name for p in tmp_path.iterdir()) == [
        "file", "folder"]
