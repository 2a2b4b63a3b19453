"""Precision, recall, density and coverage: sets of samples as unions of balls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamda_aug.metrics.distances import check_pair, distance_tiles


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
    spread: Tensor = (features - features.mean(0)).norm(dim=1).mean()
    return reach + 1e-7 * spread
