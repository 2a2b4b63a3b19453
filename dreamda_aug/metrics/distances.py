"""Distances between feature vectors: nearest images, replicas, and sets as unions of balls.

Features are arrays (N, D), torch tensors or anything ``torch.as_tensor`` takes; the arithmetic is
float64. Distances are Euclidean and made in tiles, so memory grows with N, never with N squared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dreamda_aug.inputs.samples import check_integers

# Entries of one tile of a distance matrix: a million float64 are 8 MB.
TILE_ENTRIES = 1_000_000


class NearestOther(NamedTuple):
    """For each of N synthetic images, the nearest training image that is not its seed image.

    Attributes:
        row: of that training image, (N,) int64.
        distance: distance to it, (N,) float64; far below the usual one of real images: a copy.
        seed_distance: distance to the own seed image, (N,) float64; above ``distance``: the
            image left its seed for another.
    """

    row: Tensor
    distance: Tensor
    seed_distance: Tensor


class PrecisionRecall(NamedTuple):
    """Fidelity and variety, each a share in [0, 1].

    Attributes:
        precision: share of synthetic samples that lie on the real manifold.
        recall: share of real samples that lie on the synthetic manifold.
    """

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Naeem's outlier-robust pair.

    Attributes:
        density: mean number of real neighbourhoods that a synthetic sample lies in, over ``k``;
            not bounded by 1, and 1 in expectation for equal distributions.
        coverage: share of real samples whose neighbourhood holds a synthetic sample, in [0, 1].
    """

    density: float
    coverage: float


def nearest(
    queries: Tensor, references: Tensor, *, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Nearest reference of each query.

    Args:
        queries: features (N, D).
        references: features (M, D).
        exclude: one row of ``references`` per query that does not count, (N,) integers, or None.

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
    if len(training) < 2:
        raise ValueError("training must hold at least 2 images to have another one, got 1.")
    seed_index = check_integers("seed_index", seed_index, len(synthetic), 0, len(training) - 1)
    distance, index = nearest(synthetic, training, exclude=seed_index)
    return NearestOther(index, distance,
                        _paired_distance(synthetic, training, seed_index.to(training.device)))


def replica_diversity(features: Tensor, groups: Tensor) -> float:
    """Mean distance between two replicas of one seed image, averaged over seed images.

    Args:
        features: synthetic images' features, (N, D).
        groups: id of each one's seed image, (N,) integers; those with one replica do not count.
    """
    rows = check_features("features", features)
    groups = check_integers("groups", groups, len(rows)).to(rows.device)
    counts, found = groups.unique(return_counts=True)[1].tolist(), []
    for members in rows[groups.argsort(stable=True)].split(counts):
        if len(members) > 1:
            total = sum(part.sum().item() for _, part in distance_tiles(members, members))
            found.append(total / (len(members) * (len(members) - 1)))
    if not found:
        raise ValueError(
            f"groups must name at least one seed image twice, got {len(rows)} ids with one replica "
            "each; generate two or more replicas per seed image.")
    return sum(found) / len(found)


def distance_and_diversity(images: Tensor, made: Tensor) -> tuple[float, float]:
    """Mean root mean square distance of replicas from their seed image, and from each other.

    Args:
        images: seed images, (N, C, H, W) in [0, 1].
        made: as many replicas of each, at least 2, those of one image after each other.
    """
    count = len(made) // len(images)
    distances = (made - images.repeat_interleave(count, 0)).flatten(1).square().mean(1).sqrt()
    grouped = made.unflatten(0, (len(images), count)).flatten(2)
    pairs = torch.cdist(grouped, grouped) / grouped.shape[2] ** 0.5
    return distances.mean().item(), (pairs.sum() / (len(made) * (count - 1))).item()


def precision_recall(real: Tensor, synthetic: Tensor, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall of features (N, D) and (M, D).

    Each set is a union of balls that reach to the ``k``-th nearest neighbour of each sample; 3 is
    the paper's choice.

    Source: Kynkäänniemi et al. 2019, arXiv:1904.06991, eqs. 1 and 2.
    """
    real, synthetic = check_pair(real, synthetic)
    real_reach, synthetic_reach = _reach("real", real, k), _reach("synthetic", synthetic, k)
    on_real = torch.zeros(len(synthetic), dtype=torch.bool, device=real.device)
    on_synthetic = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows, distances in distance_tiles(real, synthetic):
        on_real |= (distances <= real_reach[rows, None]).any(0)
        on_synthetic[rows] = (distances <= synthetic_reach).any(1)
    return PrecisionRecall(on_real.double().mean().item(), on_synthetic.double().mean().item())


def density_coverage(real: Tensor, synthetic: Tensor, *, k: int = 5) -> DensityCoverage:
    """Density and coverage of features (N, D) and (M, D).

    The balls around real samples reach to the ``k``-th nearest neighbour; 5 is the paper's choice.
    A sample on the sphere counts as inside.

    Source: Naeem et al. 2020, arXiv:2002.09797, section 3.1.
    """
    real, synthetic = check_pair(real, synthetic)
    reach = _reach("real", real, k)
    inside, covered = 0, 0
    for rows, distances in distance_tiles(real, synthetic):
        within = distances <= reach[rows, None]
        inside += int(within.sum())
        covered += int(within.any(1).sum())
    return DensityCoverage(inside / (k * len(synthetic)), covered / len(real))


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


def check_features(name: str, features: Tensor, least: int = 1) -> Tensor:
    """``features`` as a finite (N, D) float64 tensor, N >= ``least``, or a ValueError."""
    rows = torch.as_tensor(features)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(
            f"{name} must be a non-empty array (N, D), got shape {tuple(rows.shape)}; "
            "images become features with extract_features(images, pixel_features()).")
    if len(rows) < least:
        raise ValueError(f"{name} must hold at least {least} samples, got {len(rows)}.")
    rows = rows.detach().double()
    broken = int((~rows.isfinite().all(1)).sum())
    if broken:
        raise ValueError(
            f"{name} must be finite, got NaN or infinity in {broken} of {len(rows)} rows; "
            "drop these images or look for an overflow in the feature network.")
    return rows


def check_pair(
    first: Tensor, second: Tensor, names: tuple[str, str] = ("real", "synthetic"), least: int = 1
) -> tuple[Tensor, Tensor]:
    """Both arrays checked, with equal D, on the second one's device."""
    first, second = check_features(names[0], first, least), check_features(names[1], second, least)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have equally many columns, got {first.shape[1]} and "
            f"{second.shape[1]}; use one extractor and one image size for both.")
    return first.to(second.device), second


def _paired_distance(queries: Tensor, references: Tensor, index: Tensor) -> Tensor:
    """Distance of query i to reference ``index[i]``, (N,), in bands of bounded memory."""
    band = max(1, TILE_ENTRIES // references.shape[1])
    return torch.cat([(part - references[rows]).norm(dim=1)
                      for part, rows in zip(queries.split(band), index.split(band), strict=True)])


def _reach(name: str, features: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other row, (N,), rounding margin included."""
    if not 1 <= k < len(features):
        raise ValueError(
            f"k must lie in [1, {len(features) - 1}], the number of other samples in {name}, "
            f"got {k}; pass a smaller k or more images.")
    # Filled in place: small results kept between the tiles stop the heap from reusing their memory,
    # and the peak grows to that of the whole matrix.
    reach = torch.empty(len(features), dtype=torch.float64, device=features.device)
    for rows, distances in distance_tiles(features, features):
        own = torch.arange(rows.start, rows.stop, device=features.device)
        distances.scatter_(1, own[:, None], torch.inf)
        reach[rows] = distances.topk(k, dim=1, largest=False).values[:, -1]
    # Margin: a copy of a sample lies exactly on the spheres that pass through that sample, and
    # the last bits of two matrix products must not decide whether it is inside.
    spread: Tensor = (features - features.mean(0)).norm(dim=1).mean()
    return reach + 1e-7 * spread
