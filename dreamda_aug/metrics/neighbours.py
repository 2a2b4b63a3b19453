"""Single samples against each other: replicas, seed images, other images, class means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamda_aug.metrics.distances import (
    check_features,
    check_integers,
    check_pair,
    distance_tiles,
    nearest,
    paired_distance,
)


@dataclass(frozen=True)
class ReplicaDiversity:
    """How far replicas of one seed image lie from each other.

    Attributes:
        mean: mean over seed images of ``per_group``.
        per_group: seed image id -> mean distance between two of its replicas.
        skipped: seed images with fewer than two replicas, which say nothing about diversity.
    """

    mean: float
    per_group: dict[int, float]
    skipped: int


@dataclass(frozen=True, eq=False)
class NearestOther:
    """For each of N synthetic images, the nearest training image that is not its seed image.

    Attributes:
        index: row of that training image, (N,) int64.
        distance: distance to it, (N,) float64.
        seed_distance: distance to the own seed image, (N,) float64.
        closer_than_seed: ``distance < seed_distance``, (N,) bool: it left its seed for another.
        below_threshold: ``distance < threshold``, (N,) bool: a likely copy; None without threshold.
    """

    index: Tensor
    distance: Tensor
    seed_distance: Tensor
    closer_than_seed: Tensor
    below_threshold: Tensor | None

    @property
    def flagged(self) -> Tensor:
        """Images that either rule points at, (N,) bool."""
        if self.below_threshold is None:
            return self.closer_than_seed
        return self.closer_than_seed | self.below_threshold


@dataclass(frozen=True, eq=False)
class NearestClassMean:
    """The classifier that answers with the class whose mean is nearest.

    It has no settings and trains in one pass, which suits calibration. Works on features (N, D)
    or on images (N, C, H, W), which are flattened.

    Attributes:
        classes: the labels seen, ascending, (K,) int64.
        means: their mean features, (K, D) float64.
    """

    classes: Tensor
    means: Tensor

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor) -> NearestClassMean:
        """Take the mean of each class.

        Args:
            features: (N, D) or (N, C, H, W), any finite real numbers.
            labels: (N,) integers.
        """
        rows = _flat_rows("features", features)
        labels = check_integers("labels", labels, len(rows)).to(rows.device)
        classes, position, counts = labels.unique(return_inverse=True, return_counts=True)
        sums = rows.new_zeros(len(classes), rows.shape[1]).index_add_(0, position, rows)
        return cls(classes=classes, means=sums / counts[:, None])

    def predict(self, features: Tensor) -> Tensor:
        """Label of the nearest class mean for each row, (N,) int64; a tie goes to the lower one."""
        rows = _flat_rows("features", features).to(self.means.device)
        if rows.shape[1] != self.means.shape[1]:
            raise ValueError(
                f"features must have the {self.means.shape[1]} columns this classifier was fitted "
                f"on, got {rows.shape[1]}; pass features of the same extractor and image size."
            )
        return self.classes[nearest(rows, self.means)[1]]


def replica_diversity(features: Tensor, groups: Tensor) -> ReplicaDiversity:
    """Mean pairwise distance between the replicas of one seed image.

    Args:
        features: synthetic images' features, (N, D).
        groups: id of each one's seed image, (N,) integers.
    """
    rows = check_features("features", features)
    groups = check_integers("groups", groups, len(rows)).to(rows.device)
    per_group, skipped = {}, 0
    order = groups.argsort(stable=True)
    ids, counts = groups.unique(return_counts=True)
    for group, members in zip(ids.tolist(), order.split(counts.tolist()), strict=True):
        if len(members) < 2:
            skipped += 1
            continue
        replicas = rows[members]
        total = sum(distances.sum().item() for _, distances in distance_tiles(replicas, replicas))
        per_group[group] = total / (len(members) * (len(members) - 1))
    if not per_group:
        raise ValueError(
            f"groups must name at least one seed image twice, got {len(ids)} ids with one replica "
            "each; generate two or more replicas per seed image."
        )
    return ReplicaDiversity(sum(per_group.values()) / len(per_group), per_group, skipped)


def distance_to_seed(synthetic: Tensor, training: Tensor, seed_index: Tensor) -> Tensor:
    """Distance of each synthetic image to its own seed image, (N,) float64.

    Args:
        synthetic: features (N, D).
        training: features of the training images, (M, D).
        seed_index: row in ``training`` of each one's seed image, (N,) integers in [0, M).
    """
    synthetic, training = check_pair(synthetic, training, names=("synthetic", "training"))
    seed_index = _check_seed_index(seed_index, len(synthetic), len(training)).to(training.device)
    return paired_distance(synthetic, training, seed_index)


def nearest_other(
    synthetic: Tensor, training: Tensor, seed_index: Tensor, *, threshold: float | None = None
) -> NearestOther:
    """Find synthetic images that resemble a training image other than their seed image.

    A generator that has memorised a training image returns it whatever the seed. A scale for
    ``threshold``: the distances of ``nearest_other(training, training, arange(M))`` are those
    between real images; a small quantile of them, or a fraction of their median, marks a copy.

    Args:
        synthetic: features (N, D).
        training: features of the training images, (M, D), M >= 2.
        seed_index: row in ``training`` of each one's seed image, (N,) integers in [0, M).
        threshold: distances below it are flagged, whatever the distance to the seed image; >= 0.
    """
    synthetic, training = check_pair(synthetic, training, names=("synthetic", "training"))
    seed_index = _check_seed_index(seed_index, len(synthetic), len(training)).to(training.device)
    if len(training) < 2:
        raise ValueError("training must hold at least 2 images to have another one, got 1.")
    if threshold is not None and not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}; None switches it off.")
    distance, index = nearest(synthetic, training, exclude=seed_index)
    seed_distance = paired_distance(synthetic, training, seed_index)
    return NearestOther(
        index=index,
        distance=distance,
        seed_distance=seed_distance,
        closer_than_seed=distance < seed_distance,
        below_threshold=None if threshold is None else distance < threshold,
    )


def _check_seed_index(seed_index: Tensor, count: int, training_count: int) -> Tensor:
    seed_index = check_integers("seed_index", seed_index, count)
    low, high = seed_index.min().item(), seed_index.max().item()
    if low < 0 or high >= training_count:
        raise ValueError(
            f"seed_index must lie in [0, {training_count - 1}], the rows of training, "
            f"got values from {low} to {high}."
        )
    return seed_index


def _flat_rows(name: str, values: Tensor) -> Tensor:
    values = torch.as_tensor(values)
    return check_features(name, values.flatten(1) if values.ndim > 2 else values)
