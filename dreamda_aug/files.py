"""Files that are written as a whole or not at all, and JSON that is read with a name for it."""

import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dreamda_aug.errors import StorageError

# What a killed process leaves half-written ends so; it may be deleted at any time.
TEMPORARY = ".dreamda-tmp"


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
    except FileNotFoundError:
        temporary.unlink(missing_ok=True)
        raise
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: could not be written ({error.strerror or error}). Everything written before "
            "is kept: make room or give access, then run the same command again."
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all; raises as `atomic_file` does."""
    with atomic_file(path) as file:
        file.write(data)


def remove_temporaries(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder."""
    for path in folder.glob(f"*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines of a UTF-8 file that are not empty, each with a name for messages.

    Raises:
        StorageError: a line is no UTF-8 text.
    """
    with open(path, "rb") as file:
        yield from read_numbered(file, str(path))


def read_numbered(file: Iterable[bytes], name: str) -> Iterator[tuple[str, str]]:
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
    """A JSON object.

    Raises:
        StorageError: the text is something else; the message begins with ``where``.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{where}: expected JSON ({error}).") from error
    if not isinstance(data, dict):
        raise StorageError(f"{where}: expected a JSON object, got {shorten(data)}.")
    return data


def shorten(value: Any) -> str:
    """The value for a message, 60 characters at most."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
