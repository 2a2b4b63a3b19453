"""Images by name: folders, lists of files, and datasets of torchvision and Hugging Face."""

import csv
import hashlib
import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from dreamda_aug.errors import ExpansionError
from dreamda_aug.files import parse_json, read_lines, regular_file
from dreamda_aug.inputs.labels import number_labels
from dreamda_aug.inputs.pixels import open_image
from dreamda_aug.inputs.reader import Reader, Sample

_PATH_COLUMNS = ("path", "file", "file_name", "filename", "image")
_LABEL_COLUMNS = ("label", "class", "class_name", "target")


class FileReader(Reader):
    """Image files.

    Args:
        root: the folder that ``paths`` are relative to.
        paths: of the files, with "/".
        labels: the class of each; None if there are no classes.
        names: of the classes, in label order; None if they are numbers.
        problems: what was left out while listing, as text.
        skipped: how many entries of a list were left out.
    """

    def __init__(
        self, root: Path, paths: list[str], labels: list[int] | None, names: list[str] | None,
        problems: Sequence[str] = (), skipped: int = 0,
    ):
        self.root, self.paths, self.file_names, self.names = root, paths, paths, names
        self.problems, self.skipped = problems, skipped
        self.has_labels, self._labels = labels is not None, labels
        self._sizes = [_size(os.path.join(root, path)) for path in paths]

    def fetch(self, index: int) -> Any:
        return open_image(os.path.join(str(self.root), self.paths[index]))

    def sample(self, index: int, found: Any) -> Sample:
        if self._labels is None:
            return super().sample(index, found)
        label = self._labels[index]
        return Sample(found, label, lambda image: (image, label))

    def labels(self, indices: Sequence[int]) -> list[Any]:
        return [None if self._labels is None else self._labels[index] for index in indices]

    def file_digest(self, index: int) -> str:
        try:
            with open(regular_file(os.path.join(str(self.root), self.paths[index])), "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (PermissionError, FileNotFoundError, ExpansionError, ValueError):
            return ""

    def size(self, index: int) -> int:
        return self._sizes[index]

    def lies_at(self, index: int, path: str) -> bool:
        # records of before name the absolute path
        now = self.paths[index]
        return path == now or os.path.isabs(path) and os.path.normpath(path) == os.path.normpath(
            os.path.join(os.path.abspath(str(self.root)), now))


def list_folder(root: Path) -> FileReader:
    """Images of class folders, in the order of torchvision's ``ImageFolder``, or of one folder.

    Raises:
        ValueError: there are none.
    """
    entries = sorted((entry for entry in os.scandir(root) if not entry.name.startswith(".")),
                     key=lambda entry: entry.name)
    classes = [entry.name for entry in entries if entry.is_dir()]
    loose = [entry.name for entry in entries if not entry.is_dir() and _is_image(entry.name)]
    labels: list[int] = []
    paths: list[str] = []
    problems: list[str] = []
    for label, name in enumerate(classes):
        for folder, names in sorted(_walk(root / name, problems)):
            for file in filter(_is_image, sorted(names)):
                path = os.path.join(folder, file)
                labels.append(label)
                paths.append(os.path.relpath(path, root).replace(os.sep, "/"))
    if not paths and not loose:
        raise ValueError(
            f"{root}: the class folders hold no image files." if classes else
            f"{root}: expected one sub-folder per class, or image files, found none.")
    if not paths:
        return FileReader(root, loose, None, None, problems)
    if loose:
        problems.append(f"{len(loose)} images beside the class folders are left out")
    return FileReader(root, paths, labels, classes, problems)


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")


def _walk(folder: Path, problems: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Folders and the names of their files; links are followed, but never in a circle."""
    above: dict[str, set[str]] = {os.path.dirname(folder): set()}
    for path, folders, names in os.walk(folder, followlinks=True):
        seen = above.get(os.path.dirname(path), set()) | {os.path.realpath(path)}
        above[path] = seen
        circles = [name for name in folders if os.path.realpath(os.path.join(path, name)) in seen]
        problems += [f"{name}: a link to a folder that it lies in was not followed"
                     for name in circles]
        folders[:] = [name for name in folders
                      if name not in circles and not name.startswith(".")]
        yield path, names


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return -1


def read_list(path: Path, class_names: Sequence[str] | None) -> FileReader:
    """Images of a ``.csv`` or ``.jsonl`` list with the columns ``path`` and ``label``.

    Raises:
        ExpansionError: a line is damaged.
        ValueError: the list holds no images, or labels that are none of the class names.
    """
    rows = [(where, *_path_and_label(row, where)) for where, row in (
        _read_csv(path) if path.suffix.lower() == ".csv" else _read_jsonl(path))]
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
    if path.suffix.lower() == ".csv" and all(value.isdecimal() for value in values):
        values = [int(value) for value in values]
    try:
        labels, classes = number_labels(values, class_names)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    is_named = class_names is not None or any(isinstance(value, str) for value in values)
    return FileReader(root, list(found), labels, classes if is_named else None, problems, repeated)


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(regular_file(path), newline="", encoding="utf-8-sig") as file:
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


def _column(row: dict[str, Any], names: tuple[str, ...], where: str) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise ExpansionError(
        f"{where}: expected a column {names[0]!r}, found {', '.join(map(repr, row)) or 'none'}."
    )


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


def open_torchvision(
    name: str, split: str, root: str | Path | None, download: bool
) -> Dataset[Any]:
    """A dataset of torchvision by its name; raises ValueError if it cannot be opened."""
    from torchvision import datasets

    cls = getattr(datasets, name, None)
    if name not in datasets.__all__ or not isinstance(cls, type):
        raise ValueError(f"torchvision has no dataset {name!r}; see torchvision.datasets.")
    takes = inspect.signature(cls).parameters
    arguments: dict[str, Any] = {}
    if "root" in takes:
        arguments["root"] = str(root or "data")
    if "split" in takes:
        arguments["split"] = split
    elif "train" in takes:
        if split not in ("train", "test"):
            raise ValueError(f"split of {name} must be 'train' or 'test', got {split!r}.")
        arguments["train"] = split == "train"
    if download and "download" in takes:
        arguments["download"] = True
    try:
        dataset: Dataset[Any] = cls(**arguments)
    except (RuntimeError, OSError, TypeError) as error:
        raise ValueError(
            f"torchvision's {name} could not be opened in {arguments.get('root')}: {error} "
            "(download=True fetches it where torchvision can.)"
        ) from error
    try:
        len(dataset)  # type: ignore[arg-type]  # not all have one
    except (TypeError, NotImplementedError) as error:
        raise ValueError(f"torchvision's {name} holds no images of its own.") from error
    return dataset


def open_hugging_face(name: str, split: str, root: str | Path | None) -> Any:
    """A Hugging Face dataset by its name; raises ValueError if it cannot be opened."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Hugging Face datasets need an extra package: pip install 'dreamda_aug[hub]'."
        ) from error
    if not name.strip():
        raise ValueError("hf: must be followed by a dataset's name, such as hf:user/name.")
    try:
        return datasets.load_dataset(name, split=split, cache_dir=root and str(root))
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        raise ValueError(f"Hugging Face dataset {name!r} could not be opened: {error}") from error
