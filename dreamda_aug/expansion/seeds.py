"""Seed images on their way to the model and to PNG, and whether they are what they were."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import PIL.Image
import torch
from torch import Tensor

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.manifest import Record
from dreamda_aug.expansion.replicas import Plan
from dreamda_aug.inputs.pixels import (
    MACHINE_ERRORS,
    UNREADABLE,
    Pixels,
    TooLarge,
    fit_back,
    fit_to,
)
from dreamda_aug.inputs.seed_images import SeedImages
from dreamda_aug.models import DiffusionModel


class Unreadable(Exception):
    """A seed image cannot be used; the message is the same on every machine."""


class Seed(NamedTuple):
    """A seed image, ready for the model; digests and loss as in `ManifestLine`.

    Attributes:
        values: its pixels at the model's size and channels, (1, C, H, W) in [0, 1].
        store: from an image like ``values`` to one of the seed image's size, for a PNG file.
    """

    values: Tensor
    digest: str
    file_digest: str
    loss: str
    store: Callable[[Tensor], PIL.Image.Image]


def open_seed(images: SeedImages, index: int, model: DiffusionModel) -> Seed:
    """Open and prepare a seed image; raises as `read_seed` does."""
    file_digest, pixels = images.file_digest(index), read_seed(images, index)
    store = pixels.store
    # one number, expanded: only shape and device are looked at, and large pixels are not kept
    like = torch.zeros(1).expand(pixels.values.shape)
    return Seed(fit_to(pixels.values, model), pixels.digests[0], file_digest, pixels.loss,
                lambda made: store(fit_back(made, like)))


def read_seed(images: SeedImages, index: int) -> Pixels:
    """Read the pixels of a seed image.

    Raises:
        Unreadable: the file is broken, too large or missing.
        ValueError, TypeError: a dataset's image is none that `read_pixels` takes.
    """
    is_decoded = False
    try:
        seed = images.open(index)
        if isinstance(seed.image, PIL.Image.Image):
            seed.image.load()
        is_decoded = True
        return seed.pixels
    except TooLarge as error:
        raise Unreadable(str(error)) from error
    except UNREADABLE as error:
        # errors of the machine; and what the user's program made is refused, as everywhere
        is_theirs = is_decoded and images.root is None
        if is_theirs or isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            raise
        # without the message: it may hold paths, and the record must be the same everywhere
        raise Unreadable(f"unreadable ({type(error).__name__})") from error


def seed_check(images: SeedImages, out: str) -> Callable[[Record], None]:
    """A function that raises ExpansionError if the seed image of a record was changed since.

    Records of one seed image follow each other. A file with the same bytes is not decoded; one
    that was stored anew with the same pixels is the same image.
    """
    last = -1

    def check(record: Record) -> None:
        nonlocal last
        index = record.seed_index
        if index == last:
            return
        if index >= len(images) or images.paths[index] != record.seed_path or not (
            images.file_digest(index) == record.seed_file_digest != ""
            or _pixel_digest(images, index) == record.seed_digest
        ):
            raise ExpansionError(
                f"{out}: seed image {record.seed_path} was changed since images were made from "
                "it. Put the old image back; or begin anew with --new (new=True), which sets the "
                "old result aside."
            )
        last = index

    return check


def first_replicas(images: SeedImages, plan: Plan) -> dict[str, int]:
    """The first replica number of each seed image that equals an earlier one, by its number.

    Equal seed images get equal replicas for equal numbers, so each continues where the one before
    it ended. Files are compared byte for byte, and only those of equal size are read; images of
    other sources are compared by their pixels.
    """
    of_size = Counter(images.size(index) for index, _ in plan.counts())
    found: dict[str, int] = {}
    taken = Counter[str]()
    for index, count in plan.counts():
        if images.root is not None and of_size[images.size(index)] == 1:
            continue
        content = (_pixel_digest(images, index) if images.root is None
                   else images.file_digest(index))
        if content:
            if taken[content]:
                found[str(index)] = taken[content]
            taken[content] += count
    return found


def _pixel_digest(images: SeedImages, index: int) -> str:
    """Digest of an image's pixels; empty if it is unreadable."""
    try:
        return read_seed(images, index).digests[0]
    except Unreadable:
        return ""
