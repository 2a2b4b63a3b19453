"""Numbers of a dataset as drawings: histograms, and real and synthetic images in a plane."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_BINS = 24


@dataclass(frozen=True)
class Histogram:
    """Counts of a value over equal bins from ``low`` to ``high``.

    Attributes:
        mark: a value that a line is drawn at, such as a threshold; None: none.
    """

    title: str
    low: float
    high: float
    counts: tuple[int, ...]
    median: float
    mean: float
    mark: float | None = None

    def edge(self, number: int) -> float:
        """Where a bin begins."""
        return self.low + number * (self.high - self.low) / len(self.counts)

    def place(self, value: float) -> float | None:
        """How far a value lies from ``low`` to ``high``, in [0, 1]; None: outside."""
        if self.high == self.low or not self.low <= value <= self.high:
            return None
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Scatter:
    """Real and synthetic images in the plane in which they differ most.

    Attributes:
        real: (x, y) of each real image, in [0, 1].
        synthetic: the same of synthetic images.
        aspect: height over width of the plane, so that a distance is equally long along both.
        explained: share of all variance along x and along y.
        offset: distance between the centres, in standard deviations of the real images in the
            plane; None: there are too few.
        spread: standard deviation of the synthetic images over that of the real ones; None alike.
    """

    real: tuple[tuple[float, float], ...]
    synthetic: tuple[tuple[float, float], ...]
    aspect: float
    explained: tuple[float, float]
    offset: float | None
    spread: float | None


def histogram(title: str, values: Iterable[float], mark: float | None = None) -> Histogram:
    """Count finite values, at least one."""
    values = sorted(values)
    low, high = values[0], values[-1]
    width = (high - low) / _BINS or 1.0
    counts = [0] * _BINS
    for value in values:
        counts[min(int((value - low) / width), _BINS - 1)] += 1
    return Histogram(title, low, high, tuple(counts), values[len(values) // 2],
                     sum(values) / len(values), mark)


def scatter(real: Tensor, synthetic: Tensor) -> Scatter | None:
    """Features on their first two principal components, the same on every run.

    Args:
        real: features of real images, (N, D); N may be 0.
        synthetic: features of synthetic images, (M, D).

    Returns:
        None where fewer than three images differ.
    """
    features = torch.cat([real, synthetic]).double()
    if len(features) < 3:
        return None
    centred = features - features.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)
    if variances[-2] <= 1e-12 * len(features):
        return None
    axes = directions[:, [-1, -2]]
    # an eigenvector's sign is anyone's choice: its largest entry is positive here
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    points = centred @ axes
    low, high = points.min(0).values, points.max(0).values
    placed = ((points - low) / (high - low)).tolist()
    width, height = (high - low).tolist()
    offset = spread = None
    if len(real) >= 2 and len(synthetic) >= 2:
        of_real, of_synthetic = points[: len(real)], points[len(real) :]
        scale = max(_spread(of_real), 1e-12)
        offset = (of_real.mean(0) - of_synthetic.mean(0)).norm().item() / scale
        spread = _spread(of_synthetic) / scale
    share = (variances / variances.sum()).tolist()
    pairs = [(x, y) for x, y in placed]
    return Scatter(tuple(pairs[: len(real)]), tuple(pairs[len(real) :]), height / width,
                   (share[-1], share[-2]), offset, spread)


def _spread(points: Tensor) -> float:
    return (points - points.mean(0)).square().sum(1).mean().sqrt().item()
