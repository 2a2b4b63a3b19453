"""What one pass over a manifest gives a report: counts, worst images, images to show, figures."""

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dreamda_aug.expansion.card import Stats
from dreamda_aug.expansion.manifest import FLAGGED, ManifestLine

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
    """Counts over all lines of a manifest, and over what filters left out.

    Args:
        metadata: of the dataset.

    Attributes:
        near_copy: distance from the seed image below which an image is a near-copy.
        values: every finite score, by name.
        seeds: numbers of the seed images that have a synthetic one.
        left_out: how often each filter left out an image; ``all_left_out`` counts images.
    """

    def __init__(self, metadata: Mapping[str, Any]):
        self.filters = [str(each["name"]) for each in metadata["filters"]]
        self.near_copy = float(next((each.get("threshold", NEAR_COPY)
                                     for each in metadata["filters"]
                                     if each["name"] == "seed-copy"), NEAR_COPY))
        self.values: dict[str, list[float]] = defaultdict(list)
        self.seeds: set[int] = set()
        self.near: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.all_left_out = 0
        self._distances: dict[str, list[float]] = defaultdict(list)
        self._flags: dict[str, Counter[str]] = defaultdict(Counter)
        self._worst: dict[Ordering, list[tuple[float, int, ManifestLine]]] = defaultdict(list)

    def watch(self, lines: Iterable[ManifestLine]) -> Iterator[ManifestLine]:
        """The same lines, each counted as it passes."""
        for number, line in enumerate(lines):
            scores = scores_of(line)
            for name, value in scores.items():
                self.values[name].append(value)
            if "distance" in scores:
                self._distances[line.class_name].append(scores["distance"])
            self._flags[line.class_name].update(line.flags)
            self.near[line.class_name] += (line.distance < self.near_copy
                                           or "seed-copy" in line.flags)
            self.seeds.add(line.seed_index)
            for ordering in ORDERINGS:
                if ordering.score in scores:
                    badness = scores[ordering.score] * (1 if ordering.descending else -1)
                    heap = self._worst[ordering]
                    # the number decides between equals: they stay as they came
                    heapq.heappush(heap, (badness, -number, line))
                    if len(heap) > WORST:
                        heapq.heappop(heap)
            yield line

    def skip(self, reason: str) -> None:
        """Count a sample that is not in the dataset."""
        if reason.startswith(FLAGGED):
            self.all_left_out += 1
            self.left_out.update(reason.removeprefix(FLAGGED).split(", "))

    def worst(self) -> dict[Ordering, list[ManifestLine]]:
        """The worst lines by each ordering that was measured, the worst first."""
        return {ordering: [line for _, _, line in sorted(self._worst[ordering], reverse=True)]
                for ordering in ORDERINGS if ordering in self._worst}

    def class_table(self, classes: Mapping[str, int], stats: Stats) -> list[list[str]]:
        """The columns' names, and a row for each class that begins with its name."""
        flags = [name for name in self.filters if name not in ("label", "seed-copy")]
        columns = [("other label", "label")] * ("label" in self.filters)
        columns += [(f"{name} flagged", name) for name in flags]
        rows = [["class", "seed images", "synthetic", "mean distance", "near-copies",
                 *(title for title, _ in columns)]]
        for name, seed_images in classes.items():
            made, distances = stats.images[name], self._distances[name]
            counts = [self.near[name], *(self._flags[name][flag] for _, flag in columns)]
            rows.append([name, f"{seed_images:,}", f"{made:,}",
                         f"{fmean(distances):.3f}" if distances else "–",
                         *(f"{count:,} ({count / made:.0%})" if made else "–"
                           for count in counts)])
        return rows


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
    shares = fair_shares(sizes, limit)
    kept: dict[tuple[str, bool], list[list[ManifestLine]]] = defaultdict(list)
    held: Counter[tuple[str, bool]] = Counter()
    for _, members in groupby(lines, key=lambda line: line.seed_index):
        family = list(members)
        kind = family[0].class_name, any(line.flags or line.events for line in family)
        if held[kind] < shares.get(kind[0], 0):
            if sum(sizes.values()) > limit:
                family.sort(key=lambda line: not (line.flags or line.events))
                del family[MAX_REPLICAS:]
            kept[kind].append(sorted(family, key=lambda line: line.replica))
            held[kind] += len(family)
    chosen = {}
    for name, share in shares.items():
        flagged = _at_most(kept[name, True], share - min(held[name, False], share // 2))
        others = _at_most(kept[name, False], share - sum(map(len, flagged)))
        if flagged or others:
            chosen[name] = sorted(flagged + others, key=lambda family: family[0].seed_index)
    return {name: chosen[name] for name in sizes if name in chosen}


def fair_shares(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """How much of a total each class gets: equal parts, and what small classes leave over."""
    shares = {}
    for position, (name, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        shares[name] = min(size, total // (len(sizes) - position))
        total -= shares[name]
    return shares


def _at_most(families: list[list[ManifestLine]], count: int) -> list[list[ManifestLine]]:
    """The first families, the last one cut short if it does not fit."""
    kept = []
    for family in families:
        if count > 0:
            kept.append(family[:count])
            count -= len(kept[-1])
    return kept


@dataclass(frozen=True)
class Histogram:
    """Counts of a value over equal bins between ``edges``."""

    title: str
    edges: list[float]
    counts: list[int]
    median: float
    mean: float


@dataclass(frozen=True)
class Scatter:
    """Real and synthetic images in the plane in which they differ most.

    Attributes:
        real: (x, y) of each real image, in [0, 1].
        synthetic: the same of synthetic images.
        aspect: height over width of the plane, so that a distance is equally long along both.
        explained: share of all variance along x and along y.
    """

    real: list[list[float]]
    synthetic: list[list[float]]
    aspect: float
    explained: tuple[float, float]


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
