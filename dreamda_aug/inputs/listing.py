"""Images by name: files, folders and lists of them, datasets of torchvision and Hugging Face."""

import csv
import errno
import hashlib
import inspect
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from dreamda_aug.arguments import shown
from dreamda_aug.errors import ExpansionError, StorageError
from dreamda_aug.files import open_file, parse_json, read_lines, regular_file

# What Pillow raises for broken and hostile files, and `regular_file` for FIFOs and devices.
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError,
              struct.error, zlib.error, PIL.Image.DecompressionBombError, StorageError)
# Errors of the machine rather than of a file.
MACHINE_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE}
# 8192 x 8192. An image takes about 24 bytes a pixel while it is worked on: 1.6 GB for this many.
MAX_PIXELS = 2**26
# The pixels tell larger files apart.
_MOST_HASHED = 10**9
_PATH_COLUMNS = ("path", "file", "file_name", "filename", "image")
_LABEL_COLUMNS = ("label", "class", "class_name", "target")


class TooLarge(ValueError):
    """An image has more pixels than `MAX_PIXELS`; the message is the same on every machine."""


def open_image(path: str | Path) -> PIL.Image.Image:
    """Decode an image file.

    Raises:
        TooLarge: its header announces more than `MAX_PIXELS` pixels; it is not decoded.
        Others: see `UNREADABLE`.
    """
    # Pillow warns of large images too. No catch_warnings here: leaving it, Python forgets which
    # warnings it has shown, and every other one would be repeated for each image.
    try:
        opened = PIL.Image.open(regular_file(path))
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise TooLarge(f"larger than {MAX_PIXELS:,} pixels") from error
    with opened as image:
        check_size(*image.size)
        image.load()
        return image


def check_size(width: int, height: int) -> None:
    """Refuse images of no pixels, with a ValueError, or of more than `MAX_PIXELS`."""
    if not width * height:
        raise ValueError(f"an image must hold at least one pixel, got {width} x {height}.")
    if width * height > MAX_PIXELS:
        raise TooLarge(f"larger than {MAX_PIXELS:,} pixels")


class Files:
    """Image files as a map-style dataset of ``(image, label)``, or of images without classes.

    Attributes:
        source: the folder or list that names them.
        root: the folder that ``paths`` are relative to.
        paths: of the files, with "/".
        targets: number or name of each one's class, or None if there are no classes.
        classes: names of the classes in label order, or None to find them among the targets.
        problems: what was left out while listing, as text.
        sizes: of the files when they were listed, in bytes; -1 for those that were not there.
    """

    def __init__(
        self, source: Path, root: Path, paths: list[str], targets: list[Any] | None = None,
        classes: list[str] | None = None, problems: Sequence[str] = (),
    ):
        self.source, self.root, self.paths, self.targets = source, root, paths, targets
        self.classes, self.problems = classes, problems
        self.sizes = [os.path.getsize(place) if os.path.exists(place) else -1
                      for place in map(self._place, range(len(paths)))]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        image = open_image(self._place(index))
        return image if self.targets is None else (image, self.targets[index])

    def digest(self, index: int) -> str:
        """SHA-256 of a file, in hexadecimal; empty if it cannot be read, or is larger than 1 GB."""
        if self.sizes[index] > _MOST_HASHED:
            return ""
        try:
            with open_file(self._place(index)) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ExpansionError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
                raise
            return ""

    def _place(self, index: int) -> str:
        return os.path.join(self.root, self.paths[index])


def open_named(
    name: str | Path, class_names: Sequence[str] | None, split: str, data_root: str | None,
    download: bool,
) -> Any:
    """The dataset that a path or a name stands for; arguments are those of `open_seed_images`."""
    text, path = str(name), Path(name)
    if not text.strip():
        raise ValueError("source must name a folder, a list or a dataset, got an empty text.")
    if text == "bundled":
        from dreamda_aug.bundled import FashionMNISTSample

        return FashionMNISTSample(split)
    if text.startswith("torchvision:"):
        return _open_torchvision(text.partition(":")[2], split, data_root, download)
    if text.startswith("hf:"):
        return _open_hugging_face(text[3:], split, data_root)
    if path.is_dir():
        return _list_folder(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected a folder of class folders, a .csv or .jsonl list, "
            "torchvision:NAME, hf:NAME or bundled; found nothing.")
    return _read_list(path, class_names)


def _list_folder(root: Path) -> Files:
    """Images of class folders, in the order of torchvision's ``ImageFolder``, or of one folder."""
    entries = sorted((entry for entry in os.scandir(root) if not entry.name.startswith(".")),
                     key=lambda entry: entry.name)
    classes = [entry.name for entry in entries if entry.is_dir()]
    loose = [entry.name for entry in entries
             if not entry.is_dir() and entry.name.lower().endswith(IMG_EXTENSIONS)]
    listed = make_dataset(root, {name: label for label, name in enumerate(classes)},
                          IMG_EXTENSIONS, allow_empty=True) if classes else []
    samples = [(os.path.relpath(path, root).replace(os.sep, "/"), label) for path, label in listed]
    # without hidden files, such as those of macOS
    samples = [(path, label) for path, label in samples if "/." not in path]
    if not samples and not loose:
        raise ValueError(
            f"{root}: the class folders hold no image files." if classes else
            f"{root}: expected one sub-folder per class, or image files, found none.")
    if not samples:
        return Files(root, root, loose)
    problems = [f"{len(loose)} images beside the class folders are left out"] * bool(loose)
    paths, labels = map(list, zip(*samples))
    return Files(root, root, paths, labels, classes, problems)


def read_table(path: Path, expected: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a ``.csv`` or ``.jsonl`` file, each with its place for messages.

    Raises:
        ValueError: it is another kind of file; the message names what was ``expected``.
        StorageError: it is no regular file, or damaged.
    """
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl"):
        raise ValueError(f"{path}: expected {expected}.")
    if kind == ".jsonl":
        with open_file(path) as lines:
            for where, text in read_lines(lines, str(path)):
                yield where, parse_json(text, where)
        return
    with open(regular_file(path), newline="", encoding="utf-8-sig") as file:
        try:
            for number, row in enumerate(csv.DictReader(file), 2):
                yield f"{path}, line {number}", row
        except (csv.Error, UnicodeDecodeError) as error:
            raise StorageError(f"{path}: expected CSV in UTF-8 ({error}).") from error


def _read_list(path: Path, class_names: Sequence[str] | None) -> Files:
    """Images of a list with the columns ``path`` and ``label``."""
    rows = [(where, *_path_and_label(row, where))
            for where, row in read_table(path, "a folder, a .csv or a .jsonl list")]
    root = _common_root(path, [name for _, name, _ in rows])
    found: dict[str, Any] = {}
    for where, name, label in rows:
        if root != path.parent or os.path.isabs(name):
            name = os.path.relpath(path.parent / name, root).replace(os.sep, "/")
        if found.setdefault(name, label) != label:
            raise ExpansionError(f"{where}: {name} is listed as {found[name]!r} and as {label!r}.")
    if not found:
        raise ValueError(f"{path}: the list holds no images.")
    repeated, labels = len(rows) - len(found), list(found.values())
    if path.suffix.lower() == ".csv" and all(map(str.isdecimal, labels)):
        labels = list(map(int, labels))
    return Files(
        path, root, list(found), labels, None if class_names is None else list(class_names),
        [f"{repeated} images are listed more than once; they are used once"] * bool(repeated))


def _path_and_label(row: dict[str, Any], where: str) -> tuple[str, Any]:
    name, label = (next((row[key] for key in columns if key in row), None)
                   for columns in (_PATH_COLUMNS, _LABEL_COLUMNS))
    if not isinstance(name, str) or not name or "\0" in name or label == "" or (
            isinstance(label, bool) or not isinstance(label, str | int)):
        raise ExpansionError(f"{where}: expected a column 'path' with text, and a column 'label' "
                             f"with text or an integer, found {shown(row)}.")
    return name, label


def _common_root(path: Path, names: Sequence[str]) -> Path:
    """The list's own folder, or the one of all images where absolute paths lie elsewhere."""
    if not any(map(os.path.isabs, names)):
        return path.parent
    own = os.path.abspath(path.parent)
    shared = os.path.commonpath([
        os.path.dirname(os.path.normpath(os.path.join(own, name))) for name in names])
    return path.parent if os.path.commonpath([own, shared]) == own else Path(shared)


def _open_torchvision(name: str, split: str, root: str | None, download: bool) -> Any:
    """A dataset of torchvision by its name; raises ValueError if it cannot be opened."""
    from torchvision import datasets

    cls = getattr(datasets, name, None)
    if name not in datasets.__all__ or not isinstance(cls, type):
        raise ValueError(f"torchvision has no dataset {name!r}; see torchvision.datasets.")
    takes = inspect.signature(cls).parameters
    by_flag = "split" not in takes and "train" in takes
    if by_flag and split not in ("train", "test"):
        raise ValueError(f"split of {name} must be 'train' or 'test', got {split!r}.")
    which = {"train": split == "train"} if by_flag else {"split": split}
    arguments = {"root": root or "data", "download": download, **which}
    arguments = {key: value for key, value in arguments.items() if key in takes}
    try:
        dataset = cls(**arguments)
        len(dataset)
    except (RuntimeError, OSError, TypeError) as error:
        raise ValueError(
            f"torchvision's {name} could not be opened in {arguments.get('root')}: {error} "
            "(download=True fetches it where torchvision can.)") from error
    return dataset


def _open_hugging_face(name: str, split: str, root: str | None) -> Any:
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
        return datasets.load_dataset(name, split=split, cache_dir=root)
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        raise ValueError(f"Hugging Face dataset {name!r} could not be opened: {error}") from error
