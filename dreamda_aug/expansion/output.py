"""Where a synthetic dataset is written: a folder behind a narrow interface."""

import hashlib
import os
import secrets
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from dreamda_aug.errors import ExpansionError
from dreamda_aug.files import (
    TEMPORARY,
    atomic_file,
    local_path,
    locked,
    remove_temporaries,
    write_atomically,
)
from dreamda_aug.models import BUNDLED


@runtime_checkable
class OutputFolder(Protocol):
    """All that an expansion asks of the place that it writes to.

    Names are relative to the folder, with "/". Several processes may use one folder, and any of
    them may be killed at any moment: a file takes its place as a whole or not at all. ``str()`` of
    it is what messages call it.
    """

    def check(self) -> None:
        """Raise ExpansionError where there is something else than a folder."""
        ...

    def exists(self, name: str) -> bool:
        """Whether there is a file or folder of this name."""
        ...

    def names(self, folder: str = "") -> list[str]:
        """Names in a folder, sorted, half-written files left out; empty where it is not there."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A file for reading; FileNotFoundError where there is none."""
        ...

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        """Write a file, and make its folder; StorageError where that is refused."""
        ...

    def create(self, name: str, data: bytes) -> None:
        """Write a file unless there is one: of several processes, one succeeds."""
        ...

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        ...

    def remove_folder(self, name: str) -> None:
        """Delete a folder and the files in it, if it is there."""
        ...

    def tidy(self, folder: str = "") -> None:
        """Delete what killed processes left half-written in a folder."""
        ...

    def claim(self, name: str) -> AbstractContextManager[bool]:
        """Hold a name while in the block; False: another process holds it.

        A killed process holds nothing. A place that keeps no locks says True.
        """
        ...

    def set_aside(self) -> None:
        """Rename the folder to ``NAME.old1``, or the next free number."""
        ...

    def relative(self, path: Path) -> str | None:
        """The way from this folder to a local path, with "/"; None: there is none to be told."""
        ...


class LocalFolder:
    """An `OutputFolder` on this machine's disks.

    Args:
        root: the folder; made when something is written.

    Raises:
        ValueError: it is a URL.
    """

    def __init__(self, root: str | Path):
        self.root = local_path(root, "out_dir", "give a URL as text, with both slashes")

    def __str__(self) -> str:
        return str(self.root)

    def check(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise ExpansionError(f"{self.root}: expected a folder, found a file.")

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def names(self, folder: str = "") -> list[str]:
        try:
            found = os.listdir(self.root / folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in found if not name.endswith(TEMPORARY))

    def open(self, name: str) -> BinaryIO:
        path = self.root / name
        if path.exists() and not path.is_file():
            # a pipe would be waited for
            raise FileNotFoundError(f"{path}: expected a file, found something else.")
        return open(path, "rb")

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            for part in parts:
                file.write(part)

    def create(self, name: str, data: bytes) -> None:
        path = self.root / name
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
        write_atomically(draft, data)
        try:
            os.link(draft, path)  # unlike replace, fails where another process was quicker
        except FileExistsError:
            pass
        except OSError:
            os.replace(draft, path)  # a file system without hard links
        finally:
            draft.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def remove_folder(self, name: str) -> None:
        folder = self.root / name
        try:
            for path in folder.iterdir():
                path.unlink(missing_ok=True)
            folder.rmdir()
        except FileNotFoundError:
            pass  # another process was quicker

    def tidy(self, folder: str = "") -> None:
        remove_temporaries(self.root / folder)

    def claim(self, name: str) -> AbstractContextManager[bool]:
        return locked(self.root / name, wait=False)

    def set_aside(self) -> None:
        number = 1
        while (target := self.root.with_name(f"{self.root.name}.old{number}")).exists():
            number += 1
        self.root.rename(target)

    def relative(self, path: Path) -> str | None:
        here, there = Path(os.path.abspath(self.root)), Path(os.path.abspath(path))
        try:
            shared = Path(os.path.commonpath([here, there]))
        except ValueError:
            return None  # on another drive
        if shared == Path(shared.anchor):
            return None  # the way would name everything from the top of the disk
        return os.path.relpath(there, here).replace(os.sep, "/")


def as_folder(place: "str | Path | OutputFolder") -> OutputFolder:
    """The folder itself, or the local one of this path."""
    return LocalFolder(place) if isinstance(place, str | Path) else place


def path_from(folder: OutputFolder, place: str | None) -> tuple[str | None, bool]:
    """How a place is written down in a dataset's folder, and whether that says where it is.

    Args:
        folder: the dataset's folder.
        place: a path, or a name such as a hub id, which stays as it is.

    Returns:
        A path as ``../train`` or ``./train``; its last part alone, and False, where the two places
        share no folder.
    """
    if place is None or place == BUNDLED or not os.path.lexists(place):
        return place, True
    relative = folder.relative(Path(place))
    if relative is None:
        return os.path.basename(os.path.abspath(place)), False
    return relative if relative.startswith("..") else f"./{relative}", True


def read_bytes(folder: OutputFolder, name: str) -> bytes:
    """A file's content; FileNotFoundError where there is none."""
    with folder.open(name) as file:
        return file.read()


def sha256_of(folder: OutputFolder, name: str) -> str:
    """SHA-256 of a file in hexadecimal, read piece by piece; FileNotFoundError without one."""
    digest = hashlib.sha256()
    with folder.open(name) as file:
        for block in iter(partial(file.read, 2**20), b""):
            digest.update(block)
    return digest.hexdigest()
