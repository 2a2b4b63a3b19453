"""The images that a model is adapted to: read, encoded, and some of them held out."""

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from dreamda_aug.adaptation.settings import AdaptationSettings
from dreamda_aug.inputs.dataset_fields import as_sized
from dreamda_aug.inputs.images import UNREADABLE, fit_to, read_pixels
from dreamda_aug.inputs.labels import plain_label
from dreamda_aug.inputs.opening import open_image
from dreamda_aug.inputs.sources import Source, open_source
from dreamda_aug.inputs.untransformed import Untransformed
from dreamda_aug.method.seeding import derive_seed
from dreamda_aug.models import DiffusionModel

logger = logging.getLogger(__name__)

Labels = Sequence[int] | Tensor | Literal["source"] | None

# With fewer, none can be held out that says anything.
LEAST_IMAGES = 4
_LEAST_HELD_OUT, _MOST_HELD_OUT = 2, 64
# Of the differences of fewer images, chance can hardly be told.
_ENOUGH_HELD_OUT = 4
_ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class Pictures:
    """Images that can be opened one at a time.

    Attributes:
        names: a name for each, for messages.
        labels: (N,) int64; -1 is none.
        classes: names of the classes, in label order; empty without labels.
        open: from an image's number to a PIL image or a tensor.
    """

    names: Sequence[str]
    labels: Tensor
    classes: list[str]
    open: Callable[[int], Any]


@dataclass(frozen=True)
class TrainingImages:
    """Encoded images.

    Attributes:
        x_0: those to train on, (N, C, H, W) float32, on the CPU.
        labels: theirs, (N,) int64; -1 is none.
        held_out: those to measure on, (M, C, H, W).
        held_out_labels: theirs, (M,) int64.
        classes: names of the classes, in label order; empty without labels.
        left_out: names of the images that could not be read.
        digest: SHA-256 in hexadecimal of all pixels and labels, in order.
    """

    x_0: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor
    classes: list[str]
    left_out: list[str]
    digest: str


def open_pictures(
    source: Any, labels: Labels = "source", class_names: Sequence[str] | None = None,
    **options: Any,
) -> Pictures:
    """The images that a path, a dataset or a tensor stands for; decodes nothing.

    Args:
        source: what `open_source` takes or returns; a folder of images without classes; a tensor
            (N, C, H, W) or (N, H, W); a list of PIL images or tensors; with ``labels=None`` also a
            dataset of images.
        labels: ``"source"``: as the source has them; None: there are none; or one for each image.
        class_names: the classes in label order.
        options: of `open_source`: ``split``, ``data_root``, ``download``.

    Raises:
        ValueError: there are no images, or labels that do not fit them.
    """
    given = None if labels is None or isinstance(labels, str) else list(labels)
    if isinstance(labels, str) and labels != "source":
        raise ValueError(f"labels must be 'source', None or one for each image, got {labels!r}.")
    if isinstance(source, Tensor | list | tuple):
        return _of_memory(source, labels, given, class_names)
    if isinstance(source, str | Path) and (names := _flat_folder(Path(source))):
        root = Path(source)
        flat = Pictures(names, _none(len(names)), [], lambda i: open_image(root / names[i]))
        return flat if given is None else _labeled(flat, given, class_names)
    if labels is None and isinstance(source, Dataset) and not isinstance(source, Source):
        return _of_dataset(source)
    opened = source if isinstance(source, Source) else open_source(
        source, class_names=class_names, **options)
    for problem in opened.problems:
        logger.warning("%s", problem)
    pictures = Pictures(opened.paths, _none(len(opened.paths)), [], opened.open)
    if labels is None:
        return pictures
    found = list(opened.labels) if given is None else given
    return _labeled(pictures, found, class_names or opened.classes)


def read_images(
    pictures: Pictures, model: DiffusionModel, settings: AdaptationSettings, budget: int
) -> TrainingImages:
    """Read and encode images, and hold some out.

    Those that cannot be read are left out, with a warning.

    Args:
        pictures: the images.
        model: encodes them.
        settings: ``held_out``, ``early_stopping`` and ``rng_seed`` play a role.
        budget: how many images training can see at most; more are not read.

    Raises:
        ValueError: too few images are left.
    """
    generator = torch.Generator().manual_seed(derive_seed(settings.rng_seed, "order"))
    order = torch.randperm(len(pictures.names), generator=generator).tolist()
    if settings.early_stopping:
        budget += _MOST_HELD_OUT
    digest = hashlib.sha256()
    latents: list[Tensor] = []
    batch: list[Tensor] = []
    kept, left_out = [], []

    def encode() -> None:
        latents.append(model.encode(torch.cat(batch)).cpu())
        batch.clear()

    for index in order[:budget]:
        try:
            pixels = read_pixels(pictures.open(index))
        except UNREADABLE as error:
            left_out.append(f"{pictures.names[index]} ({type(error).__name__}: {error})")
            continue
        batch.append(fit_to(pixels.values, model))
        digest.update(f"{pixels.digests[0]}{int(pictures.labels[index])}".encode())
        kept.append(index)
        if len(batch) == _ENCODED_AT_ONCE:
            encode()
    if batch:
        encode()
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        warnings.warn(f"{len(left_out)} images could not be read and were left out: "
                      f"{'; '.join(left_out[:3])}{more}", stacklevel=3)
    if not kept:
        raise ValueError("the source holds no image that can be read.")
    x_0, labels = torch.cat(latents), pictures.labels[kept]
    train, held_out = split(labels, settings)
    return TrainingImages(x_0[train], labels[train], x_0[held_out], labels[held_out],
                          pictures.classes, left_out, digest.hexdigest())


def split(labels: Tensor, settings: AdaptationSettings) -> tuple[Tensor, Tensor]:
    """Which images are trained on, and which are held out; at least one of each class is trained.

    Args:
        labels: of the images in their order, (N,) int64.
        settings: ``held_out`` and ``early_stopping`` play a role.

    Returns:
        Two tensors of rows, int64.

    Raises:
        ValueError: too few images to hold any out.
    """
    if not settings.early_stopping:
        return torch.arange(len(labels)), torch.arange(0)
    seen: set[int] = set()
    spare = []
    for row, label in enumerate(labels.tolist()):
        if label in seen:
            spare.append(row)
        seen.add(label)
    if len(labels) < LEAST_IMAGES or len(spare) < _LEAST_HELD_OUT:
        classes = "" if len(labels) < LEAST_IMAGES else f" in {len(seen)} classes"
        raise ValueError(
            f"source must hold at least {LEAST_IMAGES} images, and {_LEAST_HELD_OUT} more images "
            "than classes, so that some can be held out to see whether adaptation helps, got "
            f"{len(labels)}{classes}; switch early stopping off to train without: "
            "early_stopping=False, steps=100 (--no-early-stopping --steps 100)."
        )
    least = min(_ENOUGH_HELD_OUT, len(labels) // 2)
    wanted = max(least, round(settings.held_out * len(labels)))
    held_out = set(spare[: min(wanted, _MOST_HELD_OUT)])
    train = [row for row in range(len(labels)) if row not in held_out]
    return torch.tensor(train), torch.tensor(sorted(held_out))


def _labeled(
    pictures: Pictures, labels: Sequence[Any], class_names: Sequence[str] | None
) -> Pictures:
    values = [int(plain_label(label)) for label in labels]
    if len(values) != len(pictures.names):
        raise ValueError(f"labels must be one for each of the {len(pictures.names)} images, got "
                         f"{len(values)}.")
    if min(values) < 0:
        raise ValueError(f"labels must be at least 0, got {min(values)}.")
    classes = list(class_names or map(str, range(max(values) + 1)))
    if max(values) >= len(classes):
        raise ValueError(f"label {max(values)} is outside the {len(classes)} class names.")
    return Pictures(pictures.names, torch.tensor(values), classes, pictures.open)


def _of_memory(
    source: Tensor | Sequence[Any], labels: Labels, given: list[Any] | None,
    class_names: Sequence[str] | None,
) -> Pictures:
    if labels == "source":
        raise ValueError(
            "labels must be given for images in memory, labels=[...], or labels=None for none.")
    if isinstance(source, Tensor) and source.ndim not in (3, 4):
        raise ValueError("a tensor of images must have shape (N, C, H, W) or (N, H, W), got "
                         f"{tuple(source.shape)}.")
    if not len(source):
        raise ValueError("the source holds no images.")

    def open_image(index: int) -> Any:
        image = source[index]
        return image[None] if isinstance(image, Tensor) and image.ndim == 2 else image

    pictures = Pictures([f"#{i}" for i in range(len(source))], _none(len(source)), [], open_image)
    return pictures if given is None else _labeled(pictures, given, class_names)


def _of_dataset(dataset: Dataset[Any]) -> Pictures:
    """The images of a dataset, whether it gives labels or not."""
    sized = as_sized(dataset)
    if not len(sized):
        raise ValueError("the source holds no images.")
    paired = isinstance(sized[0], tuple | list)
    raw = Untransformed(dataset)
    names = [f"#{i}" for i in range(len(sized))]
    return Pictures(names, _none(len(names)), [], lambda i: raw[i][0] if paired else sized[i])


def _flat_folder(root: Path) -> list[str]:
    """Image files of a folder that has no sub-folders."""
    if not root.is_dir():
        return []
    entries = [entry for entry in os.scandir(root) if not entry.name.startswith(".")]
    if any(entry.is_dir() for entry in entries):
        return []
    return sorted(e.name for e in entries if e.name.lower().endswith(IMG_EXTENSIONS))


def _none(count: int) -> Tensor:
    return torch.full((count,), -1)
