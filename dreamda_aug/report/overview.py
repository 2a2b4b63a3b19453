"""What one pass over a manifest gives a report: counts, worst images, images to show, figures."""

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import attrgetter
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dreamda_aug.expansion.manifest import ManifestLine

WORST = 12
# Synthetic images on a page; their seed images come on top.
MAX_IMAGES = 2000
# Of one seed image, if not all images fit on the page.
MAX_REPLICAS = 8
# The default of the filter seed-copy, for datasets that were made without it.
NEAR_COPY = 0.02
# Of a histogram.
_BINS = 24


class Ordering(NamedTuple):
    """A way to sort images by a score, the worst first."""

    name: str
    score: str
    descending: bool
    title: str
    meaning: str


ORDERINGS = (
    Ordering("near", "distance", False, "closest to the seed image",
             "Near-copies add nothing to the real data."),
    Ordering("far", "distance", True, "farthest from the seed image",
             "What changed most may have lost its class."),
    Ordering("label", "label", False, "least confident label",
             "The classifier gives the class of the seed image little probability."),
    Ordering("copy", "copy", False, "closest to another training image",
             "The model may have memorised that image."),
)


class Overview:
    """Counts over all lines of a manifest.

    Args:
        metadata: of the dataset.

    Attributes:
        filters: names of the dataset's filters.
        near_copy: distance from the seed image below which an image is a near-copy.
        values: every finite score, by name.
        distances: the distances of each class.
        flags: how often each filter flagged an image of each class.
        near: near-copies of each class.
        seeds: numbers of the seed images that have a synthetic one.
    """

    def __init__(self, metadata: Mapping[str, Any]):
        thresholds = {str(each["name"]): each.get("threshold") for each in metadata["filters"]}
        self.filters = list(thresholds)
        self.near_copy = float(thresholds.get("seed-copy", NEAR_COPY))
        self.values: dict[str, list[float]] = defaultdict(list)
        self.distances: dict[str, list[float]] = defaultdict(list)
        self.flags: dict[str, Counter[str]] = defaultdict(Counter)
        self.near: Counter[str] = Counter()
        self.seeds: set[int] = set()
        self._worst: dict[Ordering, list[tuple[float, int, ManifestLine]]] = defaultdict(list)

    def watch(self, lines: Iterable[ManifestLine]) -> Iterator[ManifestLine]:
        """The same lines, each counted as it passes."""
        for number, line in enumerate(lines):
            name, scores = line.class_name, scores_of(line)
            for score, value in scores.items():
                self.values[score].append(value)
            if "distance" in scores:
                self.distances[name].append(scores["distance"])
            self.flags[name].update(line.flags)
            self.near[name] += line.distance < self.near_copy or "seed-copy" in line.flags
            self.seeds.add(line.seed_index)
            for ordering in ORDERINGS:
                if ordering.score in scores:
                    badness = scores[ordering.score] * (1 if ordering.descending else -1)
                    heap = self._worst[ordering]
                    push = heapq.heappush if len(heap) < WORST else heapq.heappushpop
                    # the number decides between equals: they stay as they came
                    push(heap, (badness, -number, line))
            yield line

    def worst(self) -> dict[Ordering, list[ManifestLine]]:
        """The worst lines by each ordering that was measured, the worst first."""
        return {ordering: [line for _, _, line in sorted(self._worst[ordering], reverse=True)]
                for ordering in ORDERINGS if ordering in self._worst}


def scores_of(line: ManifestLine) -> dict[str, float]:
    """Everything that was measured on an image and is a finite number, by name."""
    scores = {"distance": line.distance, **line.scores}
    return {name: float(value) for name, value in scores.items() if math.isfinite(value)}


def choose_families(
    lines: Iterable[ManifestLine], sizes: Mapping[str, int], limit: int = MAX_IMAGES
) -> dict[str, list[list[ManifestLine]]]:
    """Choose what to show: synthetic images of one seed image together, flagged ones first.

    Holds no more lines than may be shown, twice.

    Args:
        lines: of the manifest, in which those of one seed image follow each other.
        sizes: synthetic images by class, in the order of the page.
        limit: how many may be shown. Classes share it evenly, and what small ones leave over;
            flagged families are at most half of a class, unless there are no others.
    """
    shares, by_seed = _fair_shares(sizes, limit), attrgetter("seed_index")
    kept: dict[tuple[str, bool], list[ManifestLine]] = defaultdict(list)
    for _, members in groupby(lines, by_seed):
        family = list(members)
        name, is_flagged = family[0].class_name, any(each.flags or each.events for each in family)
        if len(kept[name, is_flagged]) < shares.get(name, 0):
            if sum(sizes.values()) > limit:
                family.sort(key=lambda line: not (line.flags or line.events))
                del family[MAX_REPLICAS:]
            kept[name, is_flagged] += sorted(family, key=attrgetter("replica"))
    chosen = {}
    for name in sizes:
        share, others = shares[name], kept[name, False]
        flagged = kept[name, True][: share - min(len(others), share // 2)]
        shown = sorted(flagged + others[: share - len(flagged)], key=by_seed)
        if shown:
            chosen[name] = [list(family) for _, family in groupby(shown, by_seed)]
    return chosen


def _fair_shares(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """How much of a total each class gets: equal parts, and what small classes leave over."""
    shares = {}
    for position, (name, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        shares[name] = min(size, total // (len(sizes) - position))
        total -= shares[name]
    return shares


class Histogram(NamedTuple):
    """Counts of a value over equal bins between ``edges``."""

    title: str
    edges: list[float]
    counts: list[int]
    median: float
    mean: float


class Scatter(NamedTuple):
    """Real and synthetic images in the plane in which they differ most."""

    real: list[list[float]]  # x and y of each real image, in [0, 1]
    synthetic: list[list[float]]  # the same of synthetic images
    aspect: float  # height over width of the plane: a distance is equally long along both
    explained: tuple[float, float]  # shares of all variance, along x and along y


def histogram(title: str, values: Iterable[float]) -> Histogram:
    """Count finite values, at least one."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    counts, edges = np.histogram(ordered, _BINS, (low, high) if high > low else (low, low + 1))
    return Histogram(title, edges.tolist(), counts.tolist(), median(ordered), fmean(ordered))


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
    shares = (variances / variances.sum()).tolist()
    return Scatter(placed[: len(real)], placed[len(real) :], height / width,
                   (shares[-1], shares[-2]))
