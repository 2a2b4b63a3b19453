"""The images that a model is adapted to: read, encoded, and some of them held out."""

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from dreamda_aug.inputs.dataset_fields import as_sized
from dreamda_aug.inputs.images import UNREADABLE, ImageFormat, fit_to, read_pixels
from dreamda_aug.inputs.labels import plain_label
from dreamda_aug.inputs.opening import open_image
from dreamda_aug.inputs.sources import Source, open_source
from dreamda_aug.inputs.untransformed import Untransformed
from dreamda_aug.method.seeding import derive_seed

logger = logging.getLogger(__name__)

Labels = Sequence[int] | Tensor | Literal["source"] | None

# With fewer, none can be held out that says anything.
LEAST_IMAGES = 4
_LEAST_HELD_OUT, MOST_HELD_OUT = 2, 64
# Fewer cannot show that anything helped; see `best_gain`.
_ENOUGH_HELD_OUT = 5
_ENCODED_AT_ONCE = 16


class ImageEncoder(ImageFormat, Protocol):
    """A model that encodes images, (B, C, H, W) in [0, 1], to clean latents."""

    def encode(self, images: Tensor) -> Tensor: ...


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
    pictures: Pictures, model: ImageEncoder, held_out: float, rng_seed: int, *,
    budget: int | None = None, most: int = MOST_HELD_OUT,
) -> TrainingImages:
    """Read and encode images, and hold some out.

    Those that cannot be read are left out, with a warning.

    Args:
        pictures: the images.
        model: encodes them.
        held_out: share of the images to measure on; 0: none.
        rng_seed: another one holds out others.
        budget: how many images training can see at most; more are not read. None: all are.
        most: images to hold out at most.

    Raises:
        ValueError: too few images are left.
    """
    generator = torch.Generator().manual_seed(derive_seed(rng_seed, "order"))
    order = torch.randperm(len(pictures.names), generator=generator).tolist()
    if budget is not None and held_out:
        budget += most
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
                      f"{'; '.join(left_out[:3])}{more}", stacklevel=4)
    if not kept:
        raise ValueError("the source holds no image that can be read.")
    x_0, labels = torch.cat(latents), pictures.labels[kept]
    trained, measured = split(labels, held_out, most)
    return TrainingImages(x_0[trained], labels[trained], x_0[measured], labels[measured],
                          pictures.classes, left_out, digest.hexdigest())


def split(labels: Tensor, held_out: float, most: int = MOST_HELD_OUT) -> tuple[Tensor, Tensor]:
    """Which images are trained on, and which are held out: the same share of each class.

    At least one image of each class is trained on.

    Args:
        labels: of the images in their (random) order, (N,) int64.
        held_out: share of the images to hold out; 0: none.
        most: images to hold out at most.

    Returns:
        Two tensors of rows, int64, rising.

    Raises:
        ValueError: too few images to hold any out.
    """
    count = len(labels)
    if not held_out:
        return torch.arange(count), torch.arange(0)
    members: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        members.setdefault(label, []).append(row)
    spare = count - len(members)
    if count < LEAST_IMAGES or spare < _LEAST_HELD_OUT:
        classes = "" if count < LEAST_IMAGES else f" in {len(members)} classes"
        raise ValueError(
            f"source must hold at least {LEAST_IMAGES} images, and {_LEAST_HELD_OUT} more images "
            "than classes, so that some can be held out to measure on, got "
            f"{count}{classes}; `adapt` can train without measuring: early_stopping=False, "
            "train_steps=100 (--no-early-stopping --train-steps 100)."
        )
    least = min(_ENOUGH_HELD_OUT, count // 2)
    wanted = min(max(least, round(held_out * count)), most, spare)
    # one image at a time, of the class that has given the smallest share of its own so far
    taken = dict.fromkeys(members, 0)
    for _ in range(wanted):
        label = min((each for each in members if taken[each] < len(members[each]) - 1),
                    key=lambda each: (taken[each] / len(members[each]), each))
        taken[label] += 1
    measured = sorted(row for label, rows in members.items() for row in rows[: taken[label]])
    chosen = set(measured)
    return (torch.tensor([row for row in range(count) if row not in chosen]),
            torch.tensor(measured))


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
