"""What is expanded: class folders, lists of files, torchvision and Hugging Face datasets."""

import hashlib
import json
import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import functional as F

from dreamda_aug.inputs.dataset_fields import SizedDataset, find_classes, find_names
from dreamda_aug.inputs.file_lists import (
    FileSource,
    check_labels,
    empty_classes,
    file_size,
    open_list,
)
from dreamda_aug.inputs.hubs import open_hugging_face, open_torchvision
from dreamda_aug.inputs.images import UNREADABLE, array_to_pil
from dreamda_aug.inputs.labels import plain_label
from dreamda_aug.inputs.opening import check_pixels
from dreamda_aug.inputs.untransformed import Untransformed, labels_of


@runtime_checkable
class Source(Protocol):
    """Labeled seed images that can be opened one at a time.

    Attributes:
        classes: names of the classes, in label order.
        labels: the label of each seed image.
        paths: a name for each seed image, the same on every machine.
        spec: the arguments of `open_source` that open it again; None: it was made from an object.
        problems: what was left out while listing, in words.
        skipped: how many entries of the list were left out.
    """

    @property
    def classes(self) -> list[str]: ...

    @property
    def labels(self) -> Sequence[int]: ...

    @property
    def paths(self) -> Sequence[str]: ...

    @property
    def spec(self) -> dict[str, str | None] | None: ...

    @property
    def problems(self) -> list[str]: ...

    @property
    def skipped(self) -> int: ...

    def open(self, index: int) -> PIL.Image.Image:
        """The seed image, decoded; raises what Pillow raises for a broken one."""
        ...

    def digest(self) -> str:
        """Changes whenever the list of seed images does; opens none of them."""
        ...


@runtime_checkable
class HasFileNames(Protocol):
    """A source that knows file names for captions apart from its ``paths``; None: it has none."""

    @property
    def file_names(self) -> Sequence[str] | None: ...


@runtime_checkable
class HasFileDigests(Protocol):
    """A source of files, which can tell whether a file was changed without decoding it."""

    def file_digest(self, index: int) -> str:
        """SHA-256 of the seed image's file, in hexadecimal; empty where it is not there."""
        ...


def open_source(
    spec: str | Path | Dataset[Any],
    *,
    class_names: Sequence[str] | None = None,
    split: str | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
) -> Source:
    """The seed images that a word, a path or a dataset stands for; decodes nothing.

    Args:
        spec: a folder with one sub-folder per class, as torchvision's ``ImageFolder`` has it; a
            ``.csv`` or ``.jsonl`` list with the columns ``path`` and ``label``, paths relative to
            the list; ``"torchvision:CIFAR10"``; ``"hf:user/name"``; ``"bundled"``; or a map-style
            dataset of ``(image, label)``, ``(image, label, ...)`` or dicts with both, such as
            Hugging Face's.
        class_names: for lists and datasets: the classes in label order.
        split: for torchvision, Hugging Face and bundled data; None: ``"train"``.
        data_root: folder of torchvision's or Hugging Face's data.
        download: let torchvision download what is missing.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: it holds no labeled images, or contradicts itself.
        ExpansionError: a line of the list is damaged.
        ImportError: Hugging Face's ``datasets`` is needed and not installed.
    """
    if not isinstance(spec, str | Path):
        return DatasetSource(spec, class_names)
    text = str(spec)
    if not text.strip():
        raise ValueError("source must name a folder, a list or a dataset, got an empty text.")
    again = {"spec": text, "split": split, "data_root": str(data_root) if data_root else None}
    if text == "bundled":
        from dreamda_aug.bundled import FashionMNISTSample

        return DatasetSource(FashionMNISTSample(split or "train"), class_names, again)
    if text.startswith("torchvision:"):
        dataset = open_torchvision(text.partition(":")[2], split or "train", data_root, download)
        return DatasetSource(dataset, class_names, again)
    if text.startswith("hf:"):
        return DatasetSource(open_hugging_face(text[3:], split or "train", data_root),
                             class_names, again)
    path = Path(spec)
    again["spec"] = str(path.absolute())
    if path.is_dir():
        return _open_folder(path, again)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected a folder of class folders, a .csv or .jsonl list, "
            "torchvision:NAME, hf:NAME or bundled; found nothing."
        )
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise ValueError(f"{path}: expected a folder, a .csv or a .jsonl list.")
    return open_list(path, class_names, again)


class DatasetSource:
    """Seed images of a map-style dataset of ``(image, label)``; see `Source`.

    The images as they are before the dataset's own transform are used.

    Args:
        dataset: with ``targets`` or ``labels``, or a Hugging Face dataset; without, every item is
            read once for its label. Labels are those after its ``target_transform``.
        class_names: the classes in label order; None: the dataset's ``classes``.
        spec: what opened it.

    Attributes:
        file_names: the images' file names, by which captions are found; None: it keeps none.
            ``paths`` are numbers, which suit every dataset.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        class_names: Sequence[str] | None = None,
        spec: dict[str, str | None] | None = None,
    ):
        if not isinstance(dataset, SizedDataset):
            raise TypeError(
                "source must be a path, a name or a map-style dataset, got "
                f"{type(dataset).__name__}."
            )
        self._raw = Untransformed(dataset)
        self.spec = spec
        self.labels = [_whole(label) for label in labels_of(self._raw)]
        names = self._raw.names_of_labels()
        if class_names is None and names is None and find_classes(dataset) is not None:
            raise ValueError(
                "class_names must be given for a dataset whose target_transform changes labels: "
                "its classes name those before. Pass open_source(dataset, class_names=[...])."
            )
        count = max(self.labels, default=-1) + 1
        self.classes = list(class_names or names or map(str, range(count)))
        check_labels(self.labels, len(self.classes))
        self.paths = [f"#{i}" for i in range(len(self._raw))]
        self.file_names = find_names(dataset)
        self.problems, self.skipped = empty_classes(self.classes, self.labels), 0
        self._check_first()

    def _check_first(self) -> None:
        """Refuse a list of labels that is not what samples have: one sample is read."""
        try:
            label = _whole(self._raw[0][1])
        except UNREADABLE:
            return  # counted when its turn comes
        if label != self.labels[0]:
            raise ValueError(
                f"dataset must keep the labels of its samples in targets or labels: sample 0 has "
                f"label {label}, and the list says {self.labels[0]}."
            )

    def open(self, index: int) -> PIL.Image.Image:
        image = self._raw[index][0]
        if isinstance(image, torch.Tensor):
            picture: PIL.Image.Image = F.to_pil_image(image)
            return picture
        if isinstance(image, np.ndarray):
            return array_to_pil(image)
        if not isinstance(image, PIL.Image.Image):
            raise ValueError(
                f"a PIL image, a tensor or an array was expected, not {type(image).__name__}")
        check_pixels(*image.size)
        image.load()
        return image

    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.classes, self.labels]).encode()).hexdigest()


def _open_folder(root: Path, spec: dict[str, str | None]) -> FileSource:
    """The images of class folders, in the order of torchvision's ``ImageFolder``."""
    classes = sorted(entry.name for entry in os.scandir(root)
                     if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ValueError(f"{root}: expected one sub-folder per class, found none.")
    labels, paths, sizes = [], [], []
    problems: list[str] = []
    for label, name in enumerate(classes):
        _check_name(name, f"{root}: class folder")
        for folder, names in sorted(_walk(root / name, problems)):
            for file in sorted(names):
                if file.lower().endswith(IMG_EXTENSIONS) and not file.startswith("."):
                    path = os.path.join(folder, file)
                    _check_name(file, f"{folder}: image file")
                    labels.append(label)
                    paths.append(os.path.relpath(path, root).replace(os.sep, "/"))
                    sizes.append(file_size(path))
    if not paths:
        raise ValueError(f"{root}: the class folders hold no image files.")
    problems += empty_classes(classes, labels)
    return FileSource(root, classes, labels, paths, sizes, spec, problems)


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


def _check_name(name: str, where: str) -> None:
    """Refuse a name that no record can hold, before anything is made."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{where} {name!r} is not UTF-8 and could not be written down; rename it."
        ) from None


def lies_at(source: Source, index: int, path: str) -> bool:
    """Whether the seed image of this number is the one that a record calls by this path."""
    if isinstance(source, FileSource):
        return source.lies_at(index, path)
    return source.paths[index] == path


def _whole(label: Any) -> int:
    try:
        return operator.index(plain_label(label))
    except TypeError:
        raise ValueError(f"labels must be integers, got {label!r}.") from None
