"""Ways to sort the images of a dataset, and the worst by each of them."""

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dreamda_aug.expansion.manifest import ManifestLine

WORST = 12


@dataclass(frozen=True)
class Ordering:
    """A way to sort images, the worst first.

    Attributes:
        name: a word for it.
        score: what is compared: ``"distance"``, or the name of the filter that measured it.
        descending: whether large is bad.
        title: what stands first, in words.
        meaning: why a user should look at it.
    """

    name: str
    score: str
    descending: bool
    title: str
    meaning: str

    def badness(self, value: float) -> float:
        """The larger the earlier."""
        return value if self.descending else -value


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


def scores_of(line: ManifestLine) -> dict[str, float]:
    """Everything that was measured on an image and is a number, by name."""
    scores = {"distance": line.distance, **line.scores}
    return {name: float(value) for name, value in scores.items() if math.isfinite(value)}


def measured(scores: Iterable[str]) -> list[Ordering]:
    """The orderings by something that was measured."""
    known = set(scores)
    return [ordering for ordering in ORDERINGS if ordering.score in known]


@dataclass
class Worst:
    """Keeps the twelve worst lines of each ordering; those of equal badness as they came."""

    _heaps: dict[str, list[tuple[float, int, ManifestLine]]] = field(
        default_factory=lambda: {ordering.name: [] for ordering in ORDERINGS})
    _count: int = 0

    def add(self, line: ManifestLine, scores: Mapping[str, float]) -> None:
        self._count += 1
        for ordering in ORDERINGS:
            if ordering.score in scores:
                heap = self._heaps[ordering.name]
                # the count decides between equals, so lines are never compared
                entry = (ordering.badness(scores[ordering.score]), -self._count, line)
                if len(heap) < WORST:
                    heapq.heappush(heap, entry)
                else:
                    heapq.heappushpop(heap, entry)

    def lines(self, ordering: Ordering) -> list[ManifestLine]:
        """The worst first."""
        return [line for _, _, line in sorted(self._heaps[ordering.name], reverse=True)]
