"""The folder that a dataset is written to: on a disk, or wherever fsspec writes."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from dreamda_aug.errors import ExpansionError, StorageError
from dreamda_aug.files import (
    TEMPORARY,
    atomic_file,
    local_path,
    locked,
    open_file,
    remove_temporaries,
)


class OutputFolder:
    """A dataset's folder, which several processes share; any of them may be killed at any moment.

    A file appears as a whole or not at all. On a disk it is written beside its place and renamed.
    Elsewhere it is put together on this machine and sent at once: object stores show an object
    when all of it has arrived, and the old one until then. Object stores have no locks: two
    processes at the same share of the work write the same bytes twice.

    Args:
        out: a path, or a URL that fsspec opens, such as ``s3://bucket/folder``. The folder is made
            when something is written. ``path`` is None if it is not on this machine.

    Raises:
        ImportError: the package for this kind of URL is not installed.
        ValueError: fsspec opens no such URL; or it is a Path made of a URL, which lacks a slash.
    """

    def __init__(self, out: str | Path):
        if not (isinstance(out, str) and "://" in out):
            self.path: Path | None = local_path(out, "out", "give a URL as text, with both slashes")
            self._name, self._fs = str(self.path), LocalFileSystem()
            self._root = os.path.abspath(self.path)
            return
        try:
            self._fs, root = url_to_fs(out)
        except ImportError as error:
            raise ImportError(f"{out}: {error}; pip install 'dreamda_aug[remote]' has the packages "
                              "for s3:// and gs://.") from error
        self._name, self._root = out.rstrip("/"), str(root).rstrip("/")
        self.path = Path(self._root) if isinstance(self._fs, LocalFileSystem) else None
        if not self._root.strip("/"):
            raise ValueError(f"out must name a folder in the bucket, got {out!r} alone.")

    def __str__(self) -> str:
        return self._name

    def check(self) -> None:
        """Raise ExpansionError if there is something else than a folder."""
        if self.exists("") and not self._fs.isdir(self._root):
            raise ExpansionError(f"{self}: expected a folder, found a file.")

    def exists(self, name: str) -> bool:
        """Whether there is anything of this name."""
        self._fs.invalidate_cache()
        return bool(self._fs.exists(self._at(name)))

    def names(self, folder: str = "") -> list[str]:
        """Sorted names in a folder without half-written files; empty if there is no folder."""
        self._fs.invalidate_cache()
        try:
            found = [str(each).rstrip("/") for each in self._fs.ls(self._at(folder), detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        # some file systems list a file, or the folder itself, under its own name
        return sorted({path.rpartition("/")[2] for path in found
                       if path != self._at(folder) and not path.endswith(TEMPORARY)})

    def open(self, name: str) -> BinaryIO:
        """Open a regular file for reading, or raise FileNotFoundError."""
        if self.path is not None:
            try:
                return open_file(self.path / name)
            except StorageError as error:
                raise FileNotFoundError(str(error)) from error
        return cast(BinaryIO, self._fs.open(self._at(name), "rb"))

    def read(self, name: str) -> bytes:
        """Content of a file; raises as `open` does."""
        with self.open(name) as file:
            return file.read()

    def digest(self, name: str) -> str:
        """SHA-256 of a file in hexadecimal; raises as `open` does."""
        with self.open(name) as file:
            return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        """Write a file, and make its folder; StorageError if that is refused."""
        if self.path is not None:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.path / name) as file:
                for part in parts:
                    file.write(part)
            return
        # whole before it is sent: a stream that breaks off could leave what was sent of it
        with tempfile.NamedTemporaryFile() as draft:
            for part in parts:
                draft.write(part)
            draft.flush()
            with self._refusals(name):
                self._fs.put_file(draft.name, self._at(name))

    def remove(self, name: str, *, recursive: bool = False) -> None:
        """Delete a file, or a folder and what is in it, if there is one."""
        # another process may delete the same at the same time
        with suppress(FileNotFoundError), self._refusals(name):
            if recursive:
                self._fs.rm(self._at(name), recursive=True)
            else:
                self._fs.rm_file(self._at(name))

    def tidy(self, folder: str = "") -> None:
        """Delete what killed processes left half-written in a folder."""
        if self.path is not None:
            remove_temporaries(self.path / folder)

    def lock(self, name: str) -> AbstractContextManager[bool]:
        """Hold a lock while in the block; False if another process holds it."""
        return nullcontext(True) if self.path is None else locked(self.path / name, wait=False)

    def set_aside(self) -> None:
        """Rename the folder to ``NAME.old1``, or the next free number."""
        number = 1
        while self._fs.exists(f"{self._root}.old{number}"):
            number += 1
        with self._refusals(""):  # elsewhere all files are copied before the first is deleted
            self._fs.mv(self._root, f"{self._root}.old{number}", recursive=True)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _refusals(self, name: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            raise StorageError(
                f"{self}/{name}: could not be written ({error}). Everything written before is "
                "kept: make room or give access, then run the same command again.") from error
