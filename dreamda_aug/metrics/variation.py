"""What generation did to a batch of seed images: labels kept, distance, diversity."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Variation(NamedTuple):
    """How replicas differ from their seed images and from each other.

    Attributes:
        agreement: share of replicas that the classifier gives their seed's label, among seeds that
            it labels right itself, in [0, 1]; 1 without labels.
        distance: mean root mean square pixel distance from the seed image, in [0, 1].
        diversity: the same between two replicas of one seed image.
    """

    agreement: float
    distance: float
    diversity: float


def measure_variation(
    images: Tensor, made: Tensor, replicas: int, classify: Callable[[Tensor], Tensor],
    labels: Tensor | None,
) -> Variation:
    """Compare replicas with their seed images.

    Args:
        images: seed images, (N, C, H, W) in [0, 1].
        made: their replicas, (N · replicas, C, H, W), those of one image after each other.
        replicas: replicas per image, at least 2.
        classify: images to class indices.
        labels: of the seed images, (N,) int64; None: agreement is not measured.

    Source: ours.
    """
    seeds = images.repeat_interleave(replicas, 0)
    agreement = 1.0
    if labels is not None:
        right = (classify(images) == labels).repeat_interleave(replicas)
        same = classify(made) == labels.repeat_interleave(replicas)
        agreement = same[right].float().mean().item() if right.any() else 0.0
    grouped = made.unflatten(0, (len(images), replicas)).flatten(2)
    pairs = torch.cdist(grouped, grouped) / grouped.shape[2] ** 0.5
    return Variation(
        agreement,
        (made - seeds).flatten(1).square().mean(1).sqrt().mean().item(),
        (pairs.sum() / (len(images) * replicas * (replicas - 1))).item(),
    )
