"""Synthetic datasets in object stores and other places that fsspec knows.

A process may be killed at any moment, and the dataset is still whole or can be gone on with:

- A file is put together on this machine, and then sent in one request. Object stores show an
  object once all of it is there, and the old one until then; so no half-written file is ever seen.
- The order in which files are written is that of a local folder: images, then the record of their
  batch, which holds their digests; merged records once all of those are there; the file of their
  digests last. What is missing from the end of it is made again, with the same bytes.
- Nothing is locked. Two processes at the same share of the work write the same bytes twice.
- The stores at hand (S3, Google Cloud Storage) show what was written to every reader at once.
"""

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from dreamda_aug.errors import ExpansionError, StorageError
from dreamda_aug.expansion.output import OutputFolder, as_folder

# Files up to this size are put together in memory.
_IN_MEMORY = 16 * 2**20


class RemoteFolder:
    """An `OutputFolder` that fsspec writes to, such as ``s3://bucket/folder``.

    Args:
        url: the folder; made when something is written.
        options: for the file system, such as a profile; see fsspec's ``url_to_fs``.

    Raises:
        ImportError: the package for this kind of place is not installed.
        ValueError: there is no such kind of place.
    """

    def __init__(self, url: str, **options: Any):
        import fsspec

        try:
            self._fs, root = fsspec.core.url_to_fs(url, **options)
        except ImportError as error:
            raise ImportError(
                f"{url}: {error}; pip install 'dreamda_aug[remote]' has the packages for s3:// and "
                "gs://."
            ) from error
        self.url, self._root = url.rstrip("/"), str(root).rstrip("/")
        if not self._root.strip("/"):
            raise ValueError(f"out_dir must name a folder in the place, got {url!r} alone.")

    def __str__(self) -> str:
        return self.url

    def check(self) -> None:
        self._fs.invalidate_cache()
        if self._fs.isfile(self._root):
            raise ExpansionError(f"{self}: expected a folder, found a file.")

    def exists(self, name: str) -> bool:
        self._fs.invalidate_cache()
        return bool(self._fs.exists(self._path(name)))

    def names(self, folder: str = "") -> list[str]:
        path = self._path(folder)
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({str(each).rstrip("/").rpartition("/")[2] for each in found
                       if str(each).rstrip("/") != path})

    def open(self, name: str) -> BinaryIO:
        path = self._path(name)
        if self._fs.isdir(path):
            raise FileNotFoundError(f"{self}/{name}: expected a file, found a folder.")
        return cast(BinaryIO, self._fs.open(path, "rb"))

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        # whole before it is sent: a stream that breaks off could leave what was sent of it
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as draft:
            for part in parts:
                draft.write(part)
            size = draft.tell()
            draft.seek(0)
            with self._refusals(name):
                if size <= _IN_MEMORY:
                    self._fs.pipe_file(self._path(name, parent=True), draft.read())
                    return
                with tempfile.NamedTemporaryFile() as local:
                    shutil.copyfileobj(draft, local)
                    local.flush()
                    self._fs.put_file(local.name, self._path(name, parent=True))

    def create(self, name: str, data: bytes) -> None:
        if self.exists(name):
            return
        with self._refusals(name):
            path = self._path(name, parent=True)
            try:
                self._fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                pass
            except (NotImplementedError, ValueError, TypeError):
                # a place that cannot refuse: the last of two that begin at once counts, and `join`
                # compares what is there with what was meant
                self._fs.pipe_file(path, data)

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError), self._refusals(name):
            self._fs.rm_file(self._path(name))

    def remove_folder(self, name: str) -> None:
        with suppress(FileNotFoundError), self._refusals(name):
            self._fs.rm(self._path(name), recursive=True)

    def tidy(self, folder: str = "") -> None:
        """Nothing is left half-written."""

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        yield True  # such places keep no locks

    def set_aside(self) -> None:
        number = 1
        while self._fs.exists(f"{self._root}.old{number}"):
            number += 1
        files = [str(path) for path in self._fs.find(self._root)]
        # all copied before the first is deleted: whoever is killed in between loses nothing
        with self._refusals(""):
            for path in files:
                target = f"{self._root}.old{number}{path[len(self._root):]}"
                self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
                self._fs.copy(path, target)
            self._fs.rm(self._root, recursive=True)

    def relative(self, path: Path) -> str | None:
        return None

    def _path(self, name: str, *, parent: bool = False) -> str:
        path = f"{self._root}/{name}" if name else self._root
        if parent:  # where there are folders, and not only names with "/"
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        return path

    @contextmanager
    def _refusals(self, name: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            raise StorageError(
                f"{self}/{name}: could not be written ({error}). Everything written before is "
                "kept: make room or give access, then run the same command again."
            ) from error


def open_folder(place: str | Path | OutputFolder) -> OutputFolder:
    """The folder that a path, or a URL such as ``s3://bucket/folder``, stands for.

    Raises:
        ImportError: the package for this kind of place is not installed.
        ValueError: there is no such kind of place; or it is a Path made of a URL, which lacks a
            slash.
    """
    if isinstance(place, str) and "://" in place:
        return RemoteFolder(place)
    return as_folder(place)
