"""The images that a model is trained on: read, encoded, and some of them held out."""

import hashlib
import logging
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamda_aug.inputs.pixels import UNREADABLE, fit_to
from dreamda_aug.inputs.seed_images import SeedImages
from dreamda_aug.method.seeding import derive_seed
from dreamda_aug.models import DiffusionModel

logger = logging.getLogger(__name__)

# With fewer, none can be held out that says anything.
_LEAST_IMAGES = 4
_LEAST_HELD_OUT, MOST_HELD_OUT = 2, 64
# Fewer cannot show that anything helped; see `best_gain`.
_ENOUGH_HELD_OUT = 5
_ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class TrainingImages:
    """Encoded images."""

    x_0: Tensor  # those to train on, (N, C, H, W) float32, on the CPU
    labels: Tensor  # theirs, (N,) int64; -1 is none
    held_out: Tensor  # those to measure on, (M, C, H, W)
    held_out_labels: Tensor  # theirs, (M,) int64
    classes: list[str]  # names of the classes, in label order; empty without labels
    left_out: list[str]  # names of the images that could not be read
    digest: str  # SHA-256 in hexadecimal of all pixels and labels, in order


def read_images(
    images: SeedImages, model: DiffusionModel, held_out: float, rng_seed: int, *,
    budget: int | None = None, most: int = MOST_HELD_OUT,
) -> TrainingImages:
    """Read and encode images, and hold some out; a warning names those that cannot be read.

    Args:
        images: the images.
        model: encodes them.
        held_out: share of the images to measure on, in [0, 0.5].
        rng_seed: another one holds out others.
        budget: how many images training can see at most, or None for all; more are not read.
        most: images to hold out at most.

    Raises:
        ValueError: too few images are left.
    """
    for problem in images.problems:
        logger.warning("%s", problem)
    generator = torch.Generator().manual_seed(derive_seed(rng_seed, "order"))
    order = torch.randperm(len(images), generator=generator).tolist()
    if budget is not None and held_out:
        budget += most
    classes = images.labels or [-1] * len(images)
    digest = hashlib.sha256()
    batch: list[Tensor] = []
    latents, labels, left_out = [], [], []
    for index in order[:budget]:
        try:
            pixels = images.open(index).pixels
        except UNREADABLE as error:
            left_out.append(f"{images.paths[index]} ({type(error).__name__})")
            continue
        batch.append(fit_to(pixels.values, model))
        digest.update(f"{pixels.digests[0]}{classes[index]}".encode())
        labels.append(classes[index])
        if len(batch) == _ENCODED_AT_ONCE:
            latents.append(model.encode(torch.cat(batch)).cpu())
            batch = []
    if batch:
        latents.append(model.encode(torch.cat(batch)).cpu())
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        warnings.warn(f"{len(left_out)} images could not be read and were left out: "
                      f"{'; '.join(left_out[:3])}{more}", stacklevel=4)
    if not labels:
        raise ValueError("the source holds no image that can be read.")
    x_0, numbers = torch.cat(latents), torch.tensor(labels)
    trained, measured = split(numbers, held_out, most)
    return TrainingImages(x_0[trained], numbers[trained], x_0[measured], numbers[measured],
                          images.classes, left_out, digest.hexdigest())


def split(labels: Tensor, held_out: float, most: int = MOST_HELD_OUT) -> tuple[Tensor, Tensor]:
    """Rows to train on, and rows to hold out: the same share of each class in ``labels``, (N,).

    At least one image of each class is trained on.

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
    if count < _LEAST_IMAGES or spare < _LEAST_HELD_OUT:
        classes = "" if count < _LEAST_IMAGES else f" in {len(members)} classes"
        raise ValueError(
            f"source must hold at least {_LEAST_IMAGES} images, and {_LEAST_HELD_OUT} more images "
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
