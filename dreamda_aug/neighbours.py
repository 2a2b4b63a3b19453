"""Measures that rest on distances between feature vectors.

Features are arrays (N, D), torch tensors or anything ``torch.as_tensor`` takes; the arithmetic is
float64. Distances are Euclidean and made in tiles, so memory grows with N, never with N squared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Entries of one tile of a distance or kernel matrix: a million float64 are 8 MB.
TILE_ENTRIES = 1_000_000


@dataclass(frozen=True)
class PrecisionRecall:
    """Fidelity and variety, each a share in [0, 1].

    Attributes:
        precision: share of synthetic samples that lie on the real manifold.
        recall: share of real samples that lie on the synthetic manifold.
    """

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """Naeem's outlier-robust pair.

    Attributes:
        density: mean number of real neighbourhoods that a synthetic sample lies in, over ``k``;
            not bounded by 1, and 1 in expectation for equal distributions.
        coverage: share of real samples whose neighbourhood holds a synthetic sample, in [0, 1].
    """

    density: float
    coverage: float


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


def precision_recall(real: Tensor, synthetic: Tensor, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall.

    Args:
        real: features (N, D).
        synthetic: features (M, D).
        k: the k-th nearest neighbour sets a sample's radius; 3 is the paper's choice.

    Source: Kynkäänniemi et al. 2019, arXiv:1904.06991, eqs. 1 and 2.
    """
    real, synthetic = check_pair(real, synthetic)
    real_reach = _reach("real", real, k)
    synthetic_reach = _reach("synthetic", synthetic, k)
    on_real = torch.zeros(len(synthetic), dtype=torch.bool, device=real.device)
    on_synthetic = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, distances in distance_tiles(real, synthetic):
        on_real |= (distances <= real_reach[rows, None]).any(0)
        on_synthetic[rows] = (distances <= synthetic_reach).any(1)
    return PrecisionRecall(on_real.double().mean().item(), on_synthetic.double().mean().item())


def density_coverage(real: Tensor, synthetic: Tensor, *, k: int = 5) -> DensityCoverage:
    """Density and coverage.

    Args:
        real: features (N, D).
        synthetic: features (M, D).
        k: the k-th nearest neighbour sets a real sample's radius; 5 is the paper's choice.

    Source: Naeem et al. 2020, arXiv:2002.09797, section 3.1. A sample on the sphere counts as
    inside.
    """
    real, synthetic = check_pair(real, synthetic)
    reach = _reach("real", real, k)
    inside, covered = 0, 0
    for rows, distances in distance_tiles(real, synthetic):
        within = distances <= reach[rows, None]
        inside += int(within.sum())
        covered += int(within.any(1).sum())
    return DensityCoverage(inside / (k * len(synthetic)), covered / len(real))


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
    return _paired_distance(synthetic, training, seed_index)


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
    seed_distance = _paired_distance(synthetic, training, seed_index)
    return NearestOther(
        index=index,
        distance=distance,
        seed_distance=seed_distance,
        closer_than_seed=distance < seed_distance,
        below_threshold=None if threshold is None else distance < threshold,
    )


def nearest(
    queries: Tensor, references: Tensor, *, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Nearest reference of each query.

    Args:
        queries: features (N, D).
        references: features (M, D).
        exclude: one row of ``references`` per query that does not count, (N,) integers.

    Returns:
        Distances (N,) float64 and rows of ``references`` (N,) int64.
    """
    queries, references = check_pair(queries, references, names=("queries", "references"))
    if exclude is not None:
        exclude = check_integers("exclude", exclude, len(queries)).to(references.device)
    index = torch.empty(len(queries), dtype=torch.int64, device=references.device)
    for rows, distances in distance_tiles(queries, references):
        if exclude is not None:
            distances.scatter_(1, exclude[rows, None], torch.inf)
        index[rows] = distances.argmin(1)
    # Again without the matrix product: of a copy the distance is then exactly 0, not 1e-8.
    return _paired_distance(queries, references, index), index


def distance_tiles(rows: Tensor, columns: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the matrix of distances in bands of rows: (slice of rows, (band, len(columns)))."""
    # Centring changes no distance, and keeps the matrix product's cancellation small.
    centre = columns.mean(0)
    rows, columns = rows - centre, columns - centre
    band = max(1, TILE_ENTRIES // len(columns))
    for start in range(0, len(rows), band):
        part = slice(start, min(start + band, len(rows)))
        # 15 times as fast as the direct form at D = 2048.
        yield part, torch.cdist(rows[part], columns, compute_mode="use_mm_for_euclid_dist")


def check_features(name: str, features: Tensor) -> Tensor:
    """``features`` as a finite, non-empty (N, D) float64 tensor, or a ValueError."""
    rows = torch.as_tensor(features)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(
            f"{name} must be a non-empty array (N, D), got shape {tuple(rows.shape)}; "
            "images become features with extract_features(images, pixel_features())."
        )
    if rows.is_complex():
        raise ValueError(f"{name} must hold real numbers, got {rows.dtype}.")
    rows = rows.detach().double()
    broken = int((~rows.isfinite().all(1)).sum())
    if broken:
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {broken} of {len(rows)} rows; "
            "drop these images or look for an overflow in the feature network."
        )
    return rows


def check_pair(
    first: Tensor, second: Tensor, names: tuple[str, str] = ("real", "synthetic")
) -> tuple[Tensor, Tensor]:
    """Both arrays checked, with equal D, on the second one's device."""
    first, second = check_features(names[0], first), check_features(names[1], second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have equally many columns, got {first.shape[1]} and "
            f"{second.shape[1]}; use one extractor and one image size for both."
        )
    return first.to(second.device), second


def check_integers(name: str, values: Tensor, count: int) -> Tensor:
    """``values`` as a (count,) int64 tensor, or a ValueError."""
    values = torch.as_tensor(values)
    if values.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), got {tuple(values.shape)}.")
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(
            f"{name} must be integers, got {values.dtype}; scores become labels with argmax(1)."
        )
    return values.long()


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


def _paired_distance(queries: Tensor, references: Tensor, index: Tensor) -> Tensor:
    """Distance of query i to reference ``index[i]``, (N,), in bands of bounded memory."""
    band = max(1, TILE_ENTRIES // references.shape[1])
    return torch.cat(
        [
            (part - references[rows]).norm(dim=1)
            for part, rows in zip(queries.split(band), index.split(band), strict=True)
        ]
    )


def _reach(name: str, features: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other row, (N,), rounding margin included."""
    if not 1 <= k < len(features):
        raise ValueError(
            f"k must lie in [1, {len(features) - 1}], the number of other samples in {name}, "
            f"got {k}; pass a smaller k or more images."
        )
    # Filled in place: small results kept between the tiles stop the heap from reusing their memory,
    # and the peak grows to that of the whole matrix.
    reach = torch.empty(len(features), dtype=torch.float64, device=features.device)
    for rows, distances in distance_tiles(features, features):
        own = torch.arange(rows.start, rows.stop, device=features.device)
        distances.scatter_(1, own[:, None], torch.inf)
        reach[rows] = distances.topk(k, dim=1, largest=False).values[:, -1]
    # Margin: a copy of a sample lies exactly on the spheres that pass through that sample, and
    # the last bits of two matrix products must not decide whether it is inside.
    spread = (features - features.mean(0)).norm(dim=1).mean()
    return reach + 1e-7 * spread
