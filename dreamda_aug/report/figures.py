"""Numbers of a dataset as drawings: histograms, and real and synthetic images in a plane."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
import torch
from torch import Tensor

_BINS = 24


@dataclass(frozen=True)
class Histogram:
    """Counts of a value over equal bins between ``edges``.

    Attributes:
        mark: share of the way from the first edge to the last at which a line is drawn, such as
            for a threshold; None for no line.
        marked: the value there.
    """

    title: str
    edges: list[float]
    counts: list[int]
    median: float
    mean: float
    mark: float | None
    marked: float | None


@dataclass(frozen=True)
class Scatter:
    """Real and synthetic images in the plane in which they differ most.

    Attributes:
        real: (x, y) of each real image, in [0, 1].
        synthetic: the same of synthetic images.
        aspect: height over width of the plane, so that a distance is equally long along both.
        explained: share of all variance along x and along y.
        offset: distance between the centres, in standard deviations of the real images in the
            plane, or None for too few images.
        spread: standard deviation of the synthetic images over that of the real ones, likewise.
    """

    real: list[list[float]]
    synthetic: list[list[float]]
    aspect: float
    explained: tuple[float, float]
    offset: float | None
    spread: float | None


def histogram(title: str, values: Iterable[float], marked: float | None = None) -> Histogram:
    """Count finite values, at least one; ``marked`` is a value to draw a line at."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    counts, edges = np.histogram(ordered, _BINS, (low, high) if high > low else (low, low + 1))
    inside = marked is not None and low <= marked <= high and high > low
    return Histogram(
        title, edges.tolist(), counts.tolist(), median(ordered), fmean(ordered),
        (marked - low) / (high - low) if inside and marked is not None else None, marked)


def scatter(real: Tensor, synthetic: Tensor) -> Scatter | None:
    """Features on their first two principal components, the same on every run.

    Args:
        real: features of real images, (N, D); N may be 0.
        synthetic: features of synthetic images, (M, D).

    Returns:
        None if fewer than three images differ.
    """
    features = torch.cat([real, synthetic]).double()
    if len(features) < 3:
        return None
    centred = features - features.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)
    if variances[-2] <= 1e-12 * len(features):
        return None
    axes = directions[:, [-1, -2]]
    # an eigenvector's sign is arbitrary: its largest entry is positive here
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    points = centred @ axes
    low, high = points.min(0).values, points.max(0).values
    placed, (width, height) = ((points - low) / (high - low)).tolist(), (high - low).tolist()
    offset = spread = None
    of_real, of_synthetic = points[: len(real)], points[len(real) :]
    if len(of_real) >= 2 and len(of_synthetic) >= 2:
        scale = max(_spread(of_real), 1e-12)
        offset = (of_real.mean(0) - of_synthetic.mean(0)).norm().item() / scale
        spread = _spread(of_synthetic) / scale
    shares = (variances / variances.sum()).tolist()
    return Scatter(placed[: len(real)], placed[len(real) :], height / width,
                   (shares[-1], shares[-2]), offset, spread)


def _spread(points: Tensor) -> float:
    return (points - points.mean(0)).square().sum(1).mean().sqrt().item()
