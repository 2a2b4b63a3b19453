"""Single samples against each other: replicas, seed images, other training images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dreamda_aug.metrics.distances import (
    check_features,
    check_integers,
    check_pair,
    distance_tiles,
    nearest,
    paired_distance,
)


@dataclass(frozen=True, eq=False)
class NearestOther:
    """For each of N synthetic images, the nearest training image that is not its seed image.

    Attributes:
        index: row of that training image, (N,) int64.
        distance: distance to it, (N,) float64; far below the usual one of real images: a copy.
        seed_distance: distance to the own seed image, (N,) float64; above ``distance``: the
            image left its seed for another.
    """

    index: Tensor
    distance: Tensor
    seed_distance: Tensor


def replica_diversity(features: Tensor, groups: Tensor) -> float:
    """Mean distance between two replicas of one seed image, averaged over seed images.

    Args:
        features: synthetic images' features, (N, D).
        groups: id of each one's seed image, (N,) integers; those with one replica do not count.
    """
    rows = check_features("features", features)
    groups = check_integers("groups", groups, len(rows)).to(rows.device)
    found = []
    for members in rows[groups.argsort(stable=True)].split(groups.unique(return_counts=True)[1]
                                                           .tolist()):
        if len(members) > 1:
            total = sum(part.sum().item() for _, part in distance_tiles(members, members))
            found.append(total / (len(members) * (len(members) - 1)))
    if not found:
        raise ValueError(
            f"groups must name at least one seed image twice, got {len(rows)} ids with one replica "
            "each; generate two or more replicas per seed image."
        )
    return sum(found) / len(found)


def nearest_other(synthetic: Tensor, training: Tensor, seed_index: Tensor) -> NearestOther:
    """The training image, other than its seed image, that each synthetic image resembles most.

    A generator that has memorised a training image returns it whatever the seed. A scale for
    distances: those of ``nearest_other(training, training, arange(M))`` are between real images; a
    small quantile of them, or a fraction of their median, marks a copy.

    Args:
        synthetic: features (N, D).
        training: features of the training images, (M, D), M >= 2.
        seed_index: row in ``training`` of each one's seed image, (N,) integers in [0, M).
    """
    synthetic, training = check_pair(synthetic, training, names=("synthetic", "training"))
    seed_index = check_integers("seed_index", seed_index, len(synthetic)).to(training.device)
    low, high = seed_index.min().item(), seed_index.max().item()
    if low < 0 or high >= len(training):
        raise ValueError(
            f"seed_index must lie in [0, {len(training) - 1}], the rows of training, "
            f"got values from {low} to {high}."
        )
    if len(training) < 2:
        raise ValueError("training must hold at least 2 images to have another one, got 1.")
    distance, index = nearest(synthetic, training, exclude=seed_index)
    return NearestOther(index, distance, paired_distance(synthetic, training, seed_index))
