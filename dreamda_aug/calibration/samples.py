"""A small sample of the user's images, the same by rule, to calibrate on."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dreamda_aug.inputs.images import UNREADABLE, fit_to, read_pixels
from dreamda_aug.inputs.labels import plain_label
from dreamda_aug.inputs.seed_images import SeedImage
from dreamda_aug.models import Condition, DiffusionModel

# Images that dials are measured on, and labeled images that the judge learns from, these
# included.
MEASURED, JUDGED = 24, 256
# More classes than these are not told apart by so few images; the rule takes some of them.
MAX_CLASSES = 16
_MAX_BYTES = 2**29


class LabeledImages(Protocol):
    """Images that are opened one at a time, such as a `Source`."""

    @property
    def labels(self) -> Sequence[Any] | None:
        """The label of each image."""
        ...

    def open(self, index: int) -> Any:
        """The image: PIL, or a tensor."""
        ...


@dataclass(frozen=True)
class Sample:
    """Images of a dataset, as a model takes them.

    Attributes:
        images: (N, C, H, W) in [0, 1]; dials are measured on the first `MEASURED` of them.
        labels: their classes, numbered anew, (N,) int64.
        conditions: what generation is conditioned on for each.
        digest: of all three.
    """

    images: Tensor
    labels: Tensor
    conditions: list[Condition]
    digest: str

    @property
    def measured(self) -> int:
        """How many images dials are measured on."""
        return min(MEASURED, len(self.images))


def draw_sample(
    images: LabeledImages, indices: Iterable[int], model: DiffusionModel,
    condition_of: Callable[[int], Condition],
) -> Sample | None:
    """Draw images evenly over classes; unreadable ones and second copies are passed over.

    Args:
        images: the dataset.
        indices: which of its images may be drawn.
        model: gives their size and channels.
        condition_of: the condition of an image, by its index.

    Returns:
        The sample; None where fewer than two images differ and can be read.
    """
    channels, (height, width) = model.channels, model.image_size
    count = max(MEASURED, min(JUDGED, _MAX_BYTES // (4 * channels * height * width)))
    number: dict[Any, int] = {}
    values: list[Tensor] = []
    labels: list[int] = []
    conditions: list[Condition] = []
    digests: list[str] = []
    of_source = images.labels or []
    for index in _in_turn(of_source, sorted(indices)):
        if len(values) == count:
            break
        try:
            found = images.open(index)
            pixels = found.pixels if isinstance(found, SeedImage) else read_pixels(found)
        except UNREADABLE:
            continue
        if pixels.digests[0] in digests:
            continue
        values.append(fit_to(pixels.values[:1], model))
        digests.append(pixels.digests[0])
        labels.append(number.setdefault(_key(of_source[index]), len(number)))
        conditions.append(condition_of(index))
    if len(values) < 2:
        return None
    text = json.dumps([digests, labels, conditions])
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Sample(torch.cat(values), torch.tensor(labels), conditions, digest)


def _in_turn(labels: Sequence[Any], indices: Sequence[int]) -> list[int]:
    """Some classes, shuffled by rule: the first image of each, the second of each, ..."""
    generator = torch.Generator().manual_seed(0)
    of_class: dict[Any, list[int]] = {}
    for index in indices:
        of_class.setdefault(_key(labels[index]), []).append(index)
    members = list(of_class.values())
    members = [members[i] for i in torch.randperm(len(members), generator=generator).tolist()]
    # classes of one image teach a judge nothing: they come last
    members = sorted(members, key=lambda each: len(each) < 2)[:MAX_CLASSES]
    ranked = []
    for place, each in enumerate(members):
        order = torch.randperm(len(each), generator=generator).tolist()
        ranked += [(rank, place, each[i]) for rank, i in enumerate(order)]
    return [index for _, _, index in sorted(ranked)]


def _key(label: Any) -> Any:
    plain = plain_label(label)
    return plain if isinstance(plain, str | int) else repr(plain)
