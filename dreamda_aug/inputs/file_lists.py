"""Seed images in files, and lists of them: CSV and JSON lines."""

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image

from dreamda_aug.errors import ExpansionError
from dreamda_aug.files import parse_json, read_lines
from dreamda_aug.inputs.opening import open_image

_PATH_COLUMNS = ("path", "file", "file_name", "filename", "image")
_LABEL_COLUMNS = ("label", "class", "class_name", "target")


@dataclass
class FileSource:
    """Seed images in files; see `Source`.

    Attributes:
        root: the folder that ``paths`` are relative to.
        sizes: size of each file in bytes; -1: it was not there.
    """

    root: Path
    classes: list[str]
    labels: list[int]
    paths: list[str]
    sizes: list[int]
    spec: dict[str, str | None] | None
    problems: list[str] = field(default_factory=list)
    skipped: int = 0

    @property
    def is_folder(self) -> bool:
        """Whether ``root`` is the folder of class folders itself, and not that of a list."""
        return self.spec is not None and os.path.isdir(str(self.spec.get("spec")))

    def open(self, index: int) -> PIL.Image.Image:
        return open_image(self.root / self.paths[index])

    def file_digest(self, index: int) -> str:
        """SHA-256 of the file, in hexadecimal; empty where it is not there or no file."""
        path = self.root / self.paths[index]
        try:
            if not path.is_file():
                return ""
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (PermissionError, FileNotFoundError, ValueError):
            return ""

    def lies_at(self, index: int, path: str) -> bool:
        """Whether a seed image is the one of this path, as it is now or was on record before."""
        now = self.paths[index]
        return path == now or os.path.isabs(path) and os.path.normpath(path) == os.path.normpath(
            os.path.join(os.path.abspath(self.root), now))

    def digest(self) -> str:
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for entry in zip(self.paths, self.labels, self.sizes, strict=True):
            digest.update(json.dumps(entry).encode())
        return digest.hexdigest()


def open_list(
    path: Path, class_names: Sequence[str] | None, spec: dict[str, str | None]
) -> FileSource:
    read = _read_csv(path) if path.suffix.lower() == ".csv" else _read_jsonl(path)
    rows = [(where, *_path_and_label(row, where)) for where, row in read]
    root = _common_root(path, [name for _, name, _ in rows])
    found: dict[str, Any] = {}
    problems, repeated = [], 0
    for where, name, label in rows:
        if root != path.parent or os.path.isabs(name):
            name = os.path.relpath(path.parent / name, root).replace(os.sep, "/")
        if name in found and found[name] != label:
            raise ExpansionError(f"{where}: {name} is listed as {found[name]!r} and as {label!r}.")
        repeated += name in found
        found[name] = label
    if not found:
        raise ValueError(f"{path}: the list holds no images.")
    if repeated:
        problems.append(f"{repeated} images are listed more than once; they are used once")
    values = list(found.values())
    if path.suffix.lower() == ".csv" and all(str(value).isdecimal() for value in values):
        values = [int(value) for value in values]
    if class_names is None:
        numbers = all(isinstance(value, int) for value in values)
        values = values if numbers else [str(value) for value in values]
        class_names = [str(value) for value in sorted(set(values))]
        values = [str(value) for value in values]
    classes = list(class_names)
    position = {name: number for number, name in enumerate(classes)}
    unknown = [v for v in values if isinstance(v, str) and v not in position]
    if unknown:
        raise ValueError(f"{path}: label {unknown[0]!r} is not one of the given class names.")
    labels = [position[v] if isinstance(v, str) else v for v in values]
    check_labels(labels, len(classes))
    sizes = [file_size(os.path.join(root, name)) for name in found]
    problems += empty_classes(classes, labels)
    return FileSource(root, classes, labels, list(found), sizes, spec, problems, repeated)


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            for number, row in enumerate(csv.DictReader(file), 2):
                yield f"{path}, line {number}", row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ExpansionError(f"{path}: expected CSV in UTF-8 ({error}).") from error


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, text in read_lines(path):
        yield where, parse_json(text, where)


def _path_and_label(row: dict[str, Any], where: str) -> tuple[str, Any]:
    name, label = _column(row, _PATH_COLUMNS, where), _column(row, _LABEL_COLUMNS, where)
    if not isinstance(name, str) or not name or "\0" in name:
        raise ExpansionError(f"{where}: the path must be text, got {name!r}.")
    if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
        raise ExpansionError(f"{where}: the label must be text or an integer, got {label!r}.")
    return name, label


def _common_root(path: Path, names: Sequence[str]) -> Path:
    """The folder that a list's paths are written down relative to: no record names a machine's.

    It is the list's own, unless paths are absolute and lie elsewhere: then the folder of them all.
    """
    if not any(map(os.path.isabs, names)):
        return path.parent
    own = os.path.abspath(path.parent)
    folders = [os.path.dirname(os.path.normpath(os.path.join(own, name))) for name in names]
    try:
        shared = os.path.commonpath(folders)
        return path.parent if os.path.commonpath([own, shared]) == own else Path(shared)
    except ValueError as error:
        raise ExpansionError(
            f"{path}: the images must lie on one drive, found several ({error})."
        ) from error


def _column(row: dict[str, Any], names: tuple[str, ...], where: str) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise ExpansionError(
        f"{where}: expected a column {names[0]!r}, found {', '.join(map(repr, row)) or 'none'}."
    )


def check_labels(labels: Sequence[int], classes: int) -> None:
    if not labels:
        raise ValueError("the source holds no images.")
    for label in (min(labels), max(labels)):
        if not 0 <= label < classes:
            raise ValueError(f"label {label} is outside the {classes} class names.")


def empty_classes(classes: list[str], labels: Sequence[int]) -> list[str]:
    present = set(labels)
    return [f"class {name!r} has no images" for i, name in enumerate(classes) if i not in present]


def file_size(path: str | Path) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return -1
