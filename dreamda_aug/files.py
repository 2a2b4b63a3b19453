"""Files: written as a whole or not at all, read only where they are regular and not too large."""

import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from dreamda_aug.arguments import shown
from dreamda_aug.errors import StorageError

# What a killed process leaves half-written ends so; it may be deleted at any time.
TEMPORARY = ".dreamda-tmp"
# `read_json` reads no more; far above any JSON file of ours.
MOST_BYTES = 100_000_000
# A URL, also with the single slash that a Path leaves of it. One letter is a drive.
_URL = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")
# The fix of `local_path` for pages and pictures.
WRITE_HERE = "write to this machine, and copy it there"


def local_path(place: str | Path, name: str, fix: str) -> Path:
    """A path on this machine; ``name`` and ``fix``, what to do instead, are for the message.

    Raises:
        ValueError: it is a URL, or a Path that was made of one.
    """
    if _URL.match(str(place)):
        url = str(place) if "://" in str(place) else str(place).replace(":/", "://", 1)
        raise ValueError(f"{name} must be a path on this machine, got the URL {url!r}; {fix}.")
    return Path(place)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file for writing that takes its place at the end, as a whole or not at all.

    Raises:
        FileNotFoundError: its folder is not there.
        StorageError: the disk is full or refuses; what was there before is untouched.
    """
    # a random name, opened exclusively: no link that somebody placed there is followed
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError) or isinstance(error, FileNotFoundError):
            raise
        raise StorageError(
            f"{path}: could not be written ({error.strerror or error}). Everything written before "
            "is kept: make room or give access, then run the same command again.") from error


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock while in the block, as far as the system and the file system keep locks.

    A killed process holds nothing.

    Args:
        path: a file of its own for the lock; made, with its folder, and left there.
        wait: whether to wait for a process that holds it.

    Yields:
        False: another process holds it, and was not waited for.

    Raises:
        StorageError: there is something else than a regular file.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        regular_file(path)  # a FIFO would be waited for
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass  # this file system keeps no locks
        yield True


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all; raises as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(data)


def remove_temporaries(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder."""
    for path in folder.glob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def regular_file(path: str | Path) -> Path:
    """Return the path if it is a regular file; opening others may wait.

    Raises:
        FileNotFoundError: there is nothing.
        OSError: the path cannot be looked at.
        StorageError: it is a folder, FIFO, socket or device.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a regular file, found nothing.") from None
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "FIFO, socket or device"
        raise StorageError(f"{path}: expected a regular file, found a {kind}.")
    return Path(path)


def open_file(path: str | Path) -> BufferedReader:
    """Open a regular file for reading bytes; raises as `regular_file` does."""
    return open(regular_file(path), "rb")


def read_json(path: str | Path) -> dict[str, Any]:
    """JSON object in a regular file; raises as `regular_file` and `parse_json` do."""
    with open_file(path) as file:
        text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        raise StorageError(f"{path}: expected at most {format_bytes(MOST_BYTES)}, found more.")
    return parse_json(text, str(path))


def read_lines(file: Iterable[bytes], name: str) -> Iterator[tuple[str, str]]:
    """Lines of an open file that are not empty, each with a name for messages.

    A byte order mark is dropped wherever a line begins with one: files that are put together from
    several may hold more than one.

    Raises:
        StorageError: a line is no UTF-8 text.
    """
    for number, line in enumerate(file, 1):
        where = f"{name}, line {number}"
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise StorageError(f"{where}: expected UTF-8 text ({error}).") from error
        if text.strip():
            yield where, text


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """A JSON object; raises `StorageError` for other text, with ``where`` first."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{where}: expected JSON ({error}).") from error
    if not isinstance(data, dict):
        raise StorageError(f"{where}: expected a JSON object, got {shown(data)}.")
    return data


def format_bytes(count: int) -> str:
    """A size for people: ``2.6 MB``."""
    size = float(count)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
