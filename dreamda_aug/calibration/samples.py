"""Deterministic, class-balanced subset of the user's images, used for calibration."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamda_aug.inputs.pixels import UNREADABLE, fit_to
from dreamda_aug.inputs.seed_images import SeedImages
from dreamda_aug.models import DiffusionModel
from dreamda_aug.models.conditioning import Condition

# Images that dials are measured on, and labeled images that the judge learns from, these
# included.
MEASURED, JUDGED = 24, 256
# More classes than these are not told apart by so few images; the rule takes some of them.
MAX_CLASSES = 16
_MAX_BYTES = 2**29


@dataclass(frozen=True)
class Sample:
    """Images of a dataset, as a model takes them.

    Attributes:
        images: (N, C, H, W) in [0, 1]; dials are measured on the first `MEASURED` of them.
        labels: their classes, numbered anew, (N,) int64.
        conditions: what generation is conditioned on for each.
        digest: of all three.
        indices: number of each image in the dataset.
    """

    images: Tensor
    labels: Tensor
    conditions: list[Condition]
    digest: str
    indices: list[int]

    @property
    def measured(self) -> int:
        """How many images dials are measured on."""
        return min(MEASURED, len(self.images))


def draw_sample(
    images: SeedImages, indices: Iterable[int], model: DiffusionModel,
    condition_of: Callable[[int], Condition] | None, most: int | None = None,
    first: Collection[int] = (),
) -> Sample | None:
    """Draw images evenly over classes, without unreadable ones and duplicates.

    Args:
        images: the dataset.
        indices: which of its images may be drawn.
        model: gives their size and channels.
        condition_of: the condition of an image, by its index, or None for no conditions.
        most: the largest number of images, or None for as many as a judge learns from.
        first: those of the indices to draw before all others.

    Returns:
        The sample; None where fewer than two images differ and can be read.
    """
    channels, (height, width) = model.channels, model.image_size
    count = most or max(MEASURED, min(JUDGED, _MAX_BYTES // (4 * channels * height * width)))
    classes = images.labels or [0] * len(images)
    number: dict[int, int] = {}
    values: list[Tensor] = []
    labels: list[int] = []
    conditions: list[Condition] = []
    digests: list[str] = []
    drawn: list[int] = []
    spread = images.spread(among=indices, most_classes=MAX_CLASSES)
    for index in sorted(spread, key=lambda index: index not in first):
        if len(values) == count:
            break
        try:
            pixels = images.open(index).pixels
        except UNREADABLE:
            continue
        if pixels.digests[0] in digests:
            continue
        values.append(fit_to(pixels.values[:1], model))
        digests.append(pixels.digests[0])
        labels.append(number.setdefault(classes[index], len(number)))
        conditions.append(condition_of(index) if condition_of else None)
        drawn.append(index)
    if len(values) < 2:
        return None
    text = json.dumps([digests, labels, conditions])
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Sample(torch.cat(values), torch.tensor(labels), conditions, digest, drawn)
