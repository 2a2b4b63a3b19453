"""`SeedImages`: whatever a user hands over, as one sequence of images that are opened singly."""

import copy
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from dreamda_aug.arguments import checked
from dreamda_aug.inputs.dataset_reader import DatasetReader, SizedDataset, find_classes, find_names
from dreamda_aug.inputs.listing import UNREADABLE, Files, TooLarge, open_named
from dreamda_aug.inputs.pixels import Pixels
from dreamda_aug.inputs.samples import SeedImage, check_names, number_labels

# Empty classes that a note names.
_NAMED = 5
Labels = Sequence[Any] | Tensor | Literal["source", "later"] | None


class SeedImages:
    """A sequence of labeled images that are opened one at a time; made by `open_seed_images`.

    Attributes:
        paths: a name for each image, the same on every machine: the path of its file relative to
            ``root``, or its number, as in ``"#3"``.
        file_names: names by which captions are found, or None if the source has none.
        names: of the classes, in label order; None if they are numbers without names, and for
            names among the labels of a dataset until they are looked at.
        root: the folder that ``paths`` are relative to, or None for images without files.
        is_folder: whether ``root`` is the folder of class folders itself, not that of a list.
        spec: the arguments of `open_seed_images` that open them again, or None for an object.
    """

    def __init__(
        self, reader: DatasetReader, class_names: Sequence[str] | None,
        spec: dict[str, str | None] | None,
    ):
        if not len(reader):
            raise ValueError("the source holds no images.")
        self._reader, self._rows, self.spec = reader, list(range(len(reader))), spec
        self._files = files = reader.dataset if isinstance(reader.dataset, Files) else None
        self.root: Path | None = files.root if files else None
        self.is_folder = files is not None and files.source == files.root
        self.paths = files.paths if files else [f"#{row}" for row in self._rows]
        self.file_names = files.paths if files else find_names(reader.dataset)
        check_names(self.paths)
        names, is_renumbered = class_names, False
        if reader.has_labels and (class_names is None or self.is_folder):
            names = find_classes(reader.dataset)
            is_renumbered = names is not None and reader.changes_labels(len(names))
        self._label(reader.has_labels, None, None if is_renumbered else names)
        self._is_renumbered = is_renumbered

    def _label(
        self, has_labels: bool, given: list[Any] | None, names: Sequence[str] | None
    ) -> None:
        """Take these labels, or those of the samples for None."""
        self._has_labels, self._given, self._is_renumbered = has_labels, given, False
        self.names = list(names) if has_labels and names is not None else None
        self._numbers: list[int] = []
        self._classes: list[str] = []

    def __len__(self) -> int:
        return len(self._rows)

    def open(self, index: int) -> SeedImage:
        """Open an image; raises what `UNREADABLE` lists if it is broken."""
        return self._reader.read(self._rows[index])

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
    def classes(self) -> list[str]:
        """Names of the classes, in label order, or their numbers as text; [] without labels."""
        if self.names is None and self.labels:
            return self._classes
        return self.names or []

    @property
    def labels(self) -> list[int]:
        """The class number of each image; [] without labels.

        Where a dataset keeps no list of its labels, every sample is read, once.

        Raises:
            ValueError: a label is no class number.
        """
        if self._has_labels and not self._numbers:
            try:
                self._numbers, self.names = number_labels(self.given_labels, self.names)
            except ValueError as error:
                if self._files is None or self.is_folder:
                    raise
                raise ValueError(f"{self._files.source}: {error}") from error
            self._classes = self.names or list(map(str, range(max(self._numbers, default=-1) + 1)))
        return self._numbers

    @property
    def given_labels(self) -> list[Any]:
        """Labels of whatever kind, as the samples have them."""
        if self._given is None:
            self._given = self._reader.labels(self._rows)
        return self._given

    @property
    def problems(self) -> list[str]:
        """Entries that were left out, and classes without images, as text."""
        present = set(self.labels)
        empty = [f"class {name!r} has no images"
                 for number, name in enumerate(self.classes) if number not in present]
        more = [f"{len(empty) - _NAMED} more classes have no images"] * (len(empty) > _NAMED)
        return [*(self._files.problems if self._files else ()), *empty[:_NAMED], *more]

    def relabeled(
        self, labels: Sequence[Any] | Tensor | None, class_names: Sequence[str] | None = None
    ) -> "SeedImages":
        """The same images with other labels, or None for none."""
        other, given = copy.copy(self), None if labels is None else list(labels)
        if given is not None and len(given) != len(self):
            raise ValueError(f"labels must be one for each of the {len(self)} images, got "
                             f"{len(given)}.")
        other._label(given is not None, given, class_names)
        return other if given is None else other.labeled()

    def labeled(self) -> "SeedImages":
        """The same images; raises ValueError if they have no labels, or others than classes."""
        if not self.labels:
            raise ValueError(f"{self.root or 'source'}: expected one sub-folder per class, or "
                             "labels, found none.")
        return self

    def subset(self, indices: Iterable[int]) -> "SeedImages":
        """Some of the images, under the same names and classes."""
        other, chosen = copy.copy(self), list(indices)
        for name in ("_rows", "paths", "file_names", "_given", "_numbers"):
            values = getattr(self, name)
            setattr(other, name, values and [values[index] for index in chosen])
        return other

    def spread(
        self, count: int | None = None, among: Iterable[int] | None = None,
        most_classes: int | None = None,
    ) -> list[int]:
        """Draw images evenly over classes, deterministically: one of each class, then a second.

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
        for index, (path, label) in enumerate(zip_longest(self.paths, self.labels)):
            digest.update(json.dumps([path, label, self.size(index)]).encode())
        return digest.hexdigest()

    def file_digest(self, index: int) -> str:
        """SHA-256 of an image's file, in hexadecimal; empty if there is none."""
        return self._files.digest(self._rows[index]) if self._files else ""

    def size(self, index: int) -> int:
        """Size of an image's file when it was listed, in bytes; -1 if there was none."""
        return self._files.sizes[self._rows[index]] if self._files else -1

    def check_names(self) -> None:
        """Refuse classes whose names are known, but for other numbers, with a ValueError."""
        if self._is_renumbered:
            raise ValueError(
                "class_names must be given for a dataset whose target_transform changes labels: "
                "its classes name those before.")

    def _check(self, with_labels: bool) -> None:
        """Refuse samples of the wrong kind, by their labels and by a dataset's first image."""
        if with_labels:
            self.check_names()
        numbers = self.labels if with_labels else []
        if self.root is not None:
            return
        reader, row, is_read = self._reader, self._rows[0], False
        try:
            found, is_read = reader.fetch(row), True
            seed = reader.sample(row, found)
            if isinstance(seed.image, PIL.Image.Image):
                seed.image.load()
            digests = seed.pixels.digests
        except UNREADABLE as error:
            # a ValueError of the dataset's own reading is one of a broken file
            if isinstance(error, TypeError) or (
                    is_read and isinstance(error, ValueError) and not isinstance(error, TooLarge)):
                raise
            return  # counted when its turn comes
        if numbers:
            label = number_labels([seed.label], self.classes)[0][0]
            if label != numbers[0]:
                raise ValueError(
                    "dataset must keep the labels of its samples in targets or labels: sample 0 "
                    f"has label {label}, and the list says {numbers[0]}.")
        if reader.may_vary and self.open(0).pixels.digests != digests:
            warnings.warn(
                "the dataset gives sample 0 other pixels each time it is read: a random transform "
                "runs before generation, and what it returns is inverted anew each time. Let the "
                "dataset call it as self.transform, or pass it as AugmentedDataset(..., "
                "transform=...).", stacklevel=3)


@checked
def open_seed_images(
    source: Any, *, labels: Labels = "source", class_names: Sequence[str] | None = None,
    split: str | None = None, data_root: str | Path | None = None, download: bool = False,
) -> SeedImages:
    """Open a folder, list, name, dataset or images in memory as one sequence.

    No image is decoded, except the first of a dataset, and all samples of a dataset without a list
    of its labels.

    Args:
        source: a folder with one sub-folder per class, as torchvision's ``ImageFolder`` has it, or
            one of images without classes; a ``.csv`` or ``.jsonl`` list with the columns ``path``
            and ``label``, paths relative to the list; ``"torchvision:CIFAR10"``;
            ``"hf:user/name"``; ``"bundled"``; a map-style dataset of ``(image, label)``, ``(image,
            label, ...)`` or dicts with both, such as Hugging Face's; a tensor (N, C, H, W) or
            (N, H, W); a list of images; or `SeedImages`.
        labels: ``"source"`` for those of the source, ``"later"`` to read these at first use, None
            for none, or one for each image.
        class_names: the classes in label order, for lists and datasets.
        split: for torchvision, Hugging Face and bundled data, or None for ``"train"``.
        data_root: folder of torchvision's or Hugging Face's data.
        download: let torchvision download what is missing.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: there are no images, or labels that are no classes or do not fit them.
        TypeError: the source is of another type, or its samples hold boxes, masks or the like.
        ExpansionError: a line of a list is damaged.
        ImportError: Hugging Face's ``datasets`` is needed and not installed.
    """
    if isinstance(source, SeedImages):
        if not isinstance(labels, str):
            return source.relabeled(labels, class_names)
        if class_names is None or not source._has_labels:
            return source
        return source.relabeled(source.given_labels, class_names)
    is_own, spec = isinstance(labels, str), None
    if isinstance(source, str | Path):
        name, place = str(source), str(data_root) if data_root else None
        source = open_named(source, class_names, split or "train", place, download)
        spec = {"spec": str(source.source.absolute()) if isinstance(source, Files) else name,
                "split": split, "data_root": place}
    elif _is_memory(source):
        if is_own:
            raise ValueError("labels must be given for images in memory, labels=[...], or "
                             "labels=None for none.")
        if isinstance(source, Tensor) and source.ndim == 3:
            source = source[:, None]
    elif not isinstance(source, SizedDataset):
        raise TypeError("source must be a path, a name, images or a map-style dataset, got "
                        f"{type(source).__name__}.")
    has_labels = source.targets is not None if isinstance(source, Files) else is_own
    images = SeedImages(DatasetReader(source, has_labels), class_names, spec)
    images._check(isinstance(labels, str) and labels == "source")
    return images if isinstance(labels, str) else images.relabeled(labels, class_names)


def _is_memory(source: Any) -> bool:
    if isinstance(source, Tensor | np.ndarray):
        if source.ndim not in (3, 4):
            raise ValueError("a tensor of images must have shape (N, C, H, W) or (N, H, W), and an "
                             f"array (N, H, W[, C]), got {tuple(source.shape)}.")
        return True
    return isinstance(source, list | tuple) and not (
        source and isinstance(source[0], tuple | list | Mapping))
