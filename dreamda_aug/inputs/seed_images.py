"""`SeedImages`: whatever a user hands over, as one sequence of images that are opened singly."""

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from dreamda_aug.inputs.dataset_reader import DatasetReader, SizedDataset
from dreamda_aug.inputs.labels import number_labels
from dreamda_aug.inputs.listing import (
    list_folder,
    open_hugging_face,
    open_torchvision,
    read_list,
)
from dreamda_aug.inputs.pixels import UNREADABLE, Pixels, TooLarge, read_pixels
from dreamda_aug.inputs.reader import MemoryReader, Reader

# Empty classes that a note names.
_NAMED = 5
Labels = Sequence[Any] | Tensor | Literal["source", "later"] | None


@dataclass(frozen=True)
class SeedImage:
    """One image of the user's.

    Attributes:
        image: in its own type, before the dataset's own transform.
        label: number of its class; None without labels.
        class_name: name of its class; None without labels.
        file_name: what a caption finds it by; None where the source keeps no file names.
        given_label: its label as the dataset gives it.
        put_back: from another image to the dataset's whole sample, after its own transforms.
    """

    image: Any
    label: int | None
    class_name: str | None
    file_name: str | None
    given_label: Any
    put_back: Callable[[Any], Any]

    @cached_property
    def pixels(self) -> Pixels:
        """Its pixels, read when they are first asked for; raises as `read_pixels` does."""
        return read_pixels(self.image)


class SeedImages(Sequence[SeedImage]):
    """Images that are opened one at a time, with their classes; made by `open_seed_images`.

    Attributes:
        paths: a name for each image, the same on every machine: the path of its file relative to
            ``root``, or its number, as in ``"#3"``.
        file_names: what captions find the images by; None if the source keeps no file names.
        root: the folder that ``paths`` are relative to; None for images that are in no files.
        is_folder: whether ``root`` is the folder of class folders itself, not that of a list.
        spec: the arguments of `open_seed_images` that open them again; None if an object was given.
        skipped: how many entries of a list were left out.
    """

    def __init__(
        self, reader: Reader, labels: Labels = "source", class_names: Sequence[str] | None = None,
        spec: dict[str, str | None] | None = None,
    ):
        if not len(reader):
            raise ValueError("the source holds no images.")
        self._reader, self._rows = reader, list(range(len(reader)))
        self.spec, self.root, self.skipped = spec, reader.root, reader.skipped
        self.is_folder = spec is not None and os.path.isdir(str(spec["spec"]))
        self.paths, self.file_names = reader.paths, reader.file_names
        _check_text(self.paths)
        self._set_labels(labels, class_names)

    def _set_labels(self, labels: Labels, class_names: Sequence[str] | None) -> None:
        self._has_labels = labels is not None and (
            not isinstance(labels, str) or self._reader.has_labels)
        of_folders = self.is_folder and isinstance(labels, str)
        named = self._reader.names if class_names is None or of_folders else class_names
        self._names = None if labels is None or named is None else list(named)
        _check_text(self._names or ())
        self._given = None if labels is None or isinstance(labels, str) else list(labels)
        if self._given is not None and len(self._given) != len(self):
            raise ValueError(f"labels must be one for each of the {len(self)} images, got "
                             f"{len(self._given)}.")
        self._read: list[Any] | None = None
        self._numbered: tuple[list[int], list[str]] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> SeedImage: ...

    @overload
    def __getitem__(self, index: slice) -> "SeedImages": ...

    def __getitem__(self, index: int | slice) -> "SeedImage | SeedImages":
        found = range(len(self))[index]
        return self.open(found) if isinstance(found, int) else self.subset(found)

    def open(self, index: int) -> SeedImage:
        """Open an image; raises what `UNREADABLE` lists if it is broken."""
        sample = self._reader.read(self._rows[index])
        label = None if self._numbered is None else self._numbered[0][index]
        return SeedImage(
            sample.image, label, None if label is None else self.classes[label],
            None if self.file_names is None else self.file_names[index], sample.label,
            sample.put_back)

    def read(self, index: int) -> Pixels:
        """The pixels of an image; raises a ValueError that names one that is broken."""
        try:
            return self.open(index).pixels
        except UNREADABLE as error:
            where = self.paths[index] if self.root is None else self.root / self.paths[index]
            raise ValueError(f"{where}: could not be read as an image: {error}") from error

    def put_back(self, index: int, image: Any) -> Any:
        """As `SeedImage.put_back`; the image is read only where that is necessary."""
        return self._reader.put_back(self._rows[index], image, self.given_labels[index])

    @property
    def names(self) -> list[str] | None:
        """Names of the classes, in label order; None if they are numbers without names."""
        return self._names

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in label order, or their numbers as text; [] without labels."""
        if not self._has_labels:
            return []
        return self._number()[1] if self._names is None else self._names

    @property
    def labels(self) -> list[int]:
        """The class number of each image; [] without labels.

        Where a dataset keeps no list of its labels, every sample is read, once.

        Raises:
            ValueError: a label is no class number.
        """
        return self._number()[0] if self._has_labels else []

    @property
    def given_labels(self) -> list[Any]:
        """Labels of whatever kind, as the samples have them."""
        if self._given is not None:
            return self._given
        if self._read is None:
            self._read = self._reader.labels(self._rows)
        return self._read

    @property
    def problems(self) -> list[str]:
        """What was left out while listing, and classes without images, as text."""
        present = set(self.labels)
        empty = [f"class {name!r} has no images"
                 for number, name in enumerate(self.classes) if number not in present]
        more = [f"{len(empty) - _NAMED} more classes have no images"] * (len(empty) > _NAMED)
        return [*self._reader.problems, *empty[:_NAMED], *more]

    def relabeled(self, labels: Labels, class_names: Sequence[str] | None = None) -> "SeedImages":
        """The same images with other labels, as `open_seed_images` takes them."""
        other = copy.copy(self)
        other._set_labels(labels, class_names)
        return other

    def labeled(self) -> "SeedImages":
        """The same images; raises ValueError if they have no labels."""
        if not self._has_labels:
            raise ValueError(f"{self.root or 'source'}: expected one sub-folder per class, or "
                             "labels, found none.")
        return self

    def subset(self, indices: Iterable[int]) -> "SeedImages":
        """Some of the images, under the same names and classes."""
        other, chosen = copy.copy(self), list(indices)
        other._rows = [self._rows[index] for index in chosen]
        other.paths = [self.paths[index] for index in chosen]
        if self.file_names is not None:
            other.file_names = [self.file_names[index] for index in chosen]
        if self._given is not None:
            other._given = [self._given[index] for index in chosen]
        if self._read is not None:
            other._read = [self._read[index] for index in chosen]
        if self._numbered is not None:
            labels, names = self._numbered
            other._numbered = [labels[index] for index in chosen], names
        return other

    def spread(
        self, count: int | None = None, among: Iterable[int] | None = None,
        most_classes: int | None = None,
    ) -> list[int]:
        """Draw images evenly over classes, by rule: one of each class, a second of each, ...

        Args:
            count: how many, or None for all.
            among: the images to draw from, or None for all.
            most_classes: how many classes to draw from, or None for all; those of a single image
                come last.

        Returns:
            Numbers of the images, in the order drawn.
        """
        generator = torch.Generator().manual_seed(0)

        def shuffled(values: list[Any]) -> list[Any]:
            return [values[i] for i in torch.randperm(len(values), generator=generator).tolist()]

        labels = self.labels or [0] * len(self)
        of_class: dict[int, list[int]] = {}
        for index in sorted(range(len(self)) if among is None else among):
            of_class.setdefault(labels[index], []).append(index)
        members = sorted(shuffled(list(of_class.values())), key=lambda each: len(each) < 2)
        turns = zip_longest(*map(shuffled, members[:most_classes]))
        return [index for index in chain.from_iterable(turns) if index is not None][:count]

    def digest(self) -> str:
        """Changes whenever the list of images does, or the size of a file; opens none."""
        if self.root is None:
            return hashlib.sha256(json.dumps([self.classes, self.labels]).encode()).hexdigest()
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        labels = self.labels
        for index, path in enumerate(self.paths):
            label = labels[index] if labels else None
            digest.update(json.dumps([path, label, self.size(index)]).encode())
        return digest.hexdigest()

    def file_digest(self, index: int) -> str:
        """SHA-256 of an image's file, in hexadecimal; empty if there is none."""
        return self._reader.file_digest(self._rows[index])

    def size(self, index: int) -> int:
        """Size of an image's file when it was listed, in bytes; -1 if there was none."""
        return self._reader.size(self._rows[index])

    def lies_at(self, index: int, path: str) -> bool:
        """Whether an image is the one that a record calls by this path."""
        return self._reader.lies_at(self._rows[index], path)

    def _number(self) -> tuple[list[int], list[str]]:
        if self._numbered is None:
            self._numbered = number_labels(self.given_labels, self._names)
            if any(isinstance(label, str) for label in self.given_labels):
                self._names = self._numbered[1]
                _check_text(self._names)
        return self._numbered

    def check_names(self) -> None:
        """Refuse classes whose names are known, but for other numbers, with a ValueError."""
        if self._names is None and self._reader.is_renumbered:
            raise ValueError(
                "class_names must be given for a dataset whose target_transform changes labels: "
                "its classes name those before."
            )

    def check(self, with_labels: bool = True) -> None:
        """Refuse samples of the wrong kind: labels are read, and the first image of a dataset.

        Raises:
            TypeError: the sample holds annotations, or no image.
            ValueError: its pixels are none that `read_pixels` takes; or a label is no class, or
                another in the sample than in the dataset's list.
        """
        if with_labels and self._has_labels:
            self._number()
        if self.root is not None:
            return
        reader, row = self._reader, self._rows[0]
        try:
            found = reader.fetch(row)
        except UNREADABLE:
            return  # counted when its turn comes
        sample = reader.sample(row, found)
        try:
            if isinstance(sample.image, PIL.Image.Image):
                sample.image.load()
            pixels = read_pixels(sample.image)
        except (OSError, SyntaxError, TooLarge):
            return
        if self._numbered is not None and reader.has_labels and self._given is None:
            label, listed = number_labels([sample.label], self.classes)[0][0], self._numbered[0][0]
            if label != listed:
                raise ValueError(
                    "dataset must keep the labels of its samples in targets or labels: sample 0 "
                    f"has label {label}, and the list says {listed}."
                )
        if reader.may_vary and read_pixels(reader.read(row).image).digests != pixels.digests:
            warnings.warn(
                "the dataset gives sample 0 other pixels each time it is read: a random transform "
                "runs before generation, and what it returns is inverted anew each time. Let the "
                "dataset call it as self.transform, or pass it as AugmentedDataset(..., "
                "transform=...).", stacklevel=3)


def open_seed_images(
    source: Any, *, labels: Labels = "source", class_names: Sequence[str] | None = None,
    split: str | None = None, data_root: str | Path | None = None, download: bool = False,
) -> SeedImages:
    """The images that a path, a name, a dataset or images in memory stand for.

    Nothing is decoded, but for the first image of a dataset, and all samples of a dataset that
    keeps no list of its labels.

    Args:
        source: a folder with one sub-folder per class, as torchvision's ``ImageFolder`` has it, or
            one of images without classes; a ``.csv`` or ``.jsonl`` list with the columns ``path``
            and ``label``, paths relative to the list; ``"torchvision:CIFAR10"``;
            ``"hf:user/name"``; ``"bundled"``; a map-style dataset of ``(image, label)``, ``(image,
            label, ...)`` or dicts with both, such as Hugging Face's; a tensor (N, C, H, W) or
            (N, H, W); a list of images; or `SeedImages`.
        labels: ``"source"`` for those that the source has; ``"later"`` for the same, looked at when
            they are first asked for; None for none; or one for each image.
        class_names: the classes in label order, for lists and datasets.
        split: for torchvision, Hugging Face and bundled data; None is ``"train"``.
        data_root: folder of torchvision's or Hugging Face's data.
        download: let torchvision download what is missing.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: there are no images, or labels that are no classes or do not fit them.
        TypeError: the source is of another type, or its samples hold boxes, masks or the like.
        ExpansionError: a line of a list is damaged.
        ImportError: Hugging Face's ``datasets`` is needed and not installed.
    """
    if isinstance(labels, str) and labels not in ("source", "later"):
        raise ValueError(f"labels must be 'source', 'later', None or one for each image, got "
                         f"{labels!r}.")
    if isinstance(source, SeedImages):
        is_same = isinstance(labels, str) and class_names is None
        return source if is_same else source.relabeled(labels, class_names)
    spec: dict[str, str | None] | None = None
    if isinstance(source, str | Path):
        spec = {"spec": str(source), "split": split,
                "data_root": str(data_root) if data_root else None}
        source = _open_named(spec, class_names, download)
    if isinstance(source, Reader):
        reader = source
    elif _is_memory(source):
        if isinstance(labels, str):
            raise ValueError("labels must be given for images in memory, labels=[...], or "
                             "labels=None for none.")
        reader = MemoryReader(source)
    elif isinstance(source, SizedDataset):
        reader = DatasetReader(source, only_images=not isinstance(labels, str))
        if isinstance(labels, str) and class_names is None:
            reader.name_classes()
    else:
        raise TypeError("source must be a path, a name, images or a map-style dataset, got "
                        f"{type(source).__name__}.")
    images = SeedImages(reader, labels, class_names, spec)
    if labels == "source":
        images.check_names()
    images.check(with_labels=labels != "later")
    return images


def _open_named(
    spec: dict[str, str | None], class_names: Sequence[str] | None, download: bool
) -> Any:
    """What a path or a name stands for; the path in ``spec`` becomes absolute."""
    text, split, root = spec["spec"] or "", spec["split"] or "train", spec["data_root"]
    if not text.strip():
        raise ValueError("source must name a folder, a list or a dataset, got an empty text.")
    if text == "bundled":
        from dreamda_aug.bundled import FashionMNISTSample

        return FashionMNISTSample(split)
    if text.startswith("torchvision:"):
        return open_torchvision(text.partition(":")[2], split, root, download)
    if text.startswith("hf:"):
        return open_hugging_face(text[3:], split, root)
    path = Path(text)
    spec["spec"] = str(path.absolute())
    if path.is_dir():
        return list_folder(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected a folder of class folders, a .csv or .jsonl list, "
            "torchvision:NAME, hf:NAME or bundled; found nothing."
        )
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise ValueError(f"{path}: expected a folder, a .csv or a .jsonl list.")
    return read_list(path, class_names)


def _is_memory(source: Any) -> bool:
    if isinstance(source, Tensor | np.ndarray):
        if source.ndim not in (3, 4):
            raise ValueError("a tensor of images must have shape (N, C, H, W) or (N, H, W), and an "
                             f"array (N, H, W[, C]), got {tuple(source.shape)}.")
        return True
    return isinstance(source, list | tuple) and not (
        source and isinstance(source[0], tuple | list | Mapping))


def _check_text(names: Iterable[str]) -> None:
    """Refuse a name that no record can hold, before anything is made."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"the name {name!r} is not UTF-8 and could not be written down; rename it."
            ) from None
