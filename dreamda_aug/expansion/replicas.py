"""What an expansion will make: which replicas of which seed images, in which batches."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from dreamda_aug.inputs.sources import Source

# The most synthetic images of one seed image: more is a slip, and no plan could be listed.
MAX_REPLICAS = 1_000_000


class PlannedSample(NamedTuple):
    """One synthetic image to make.

    Attributes:
        seed_index: number of the seed image in the source.
        replica: number of the replica, >= 0.
    """

    seed_index: int
    replica: int

    @property
    def id(self) -> str:
        """Its name in the dataset; does not depend on what else is made."""
        return f"{self.seed_index:08d}_{self.replica:04d}"


class Plan:
    """All samples in order, cut into units: batches that are generated as a whole.

    The last bits of a result depend on the shape of its batch. So the batches are part of the plan:
    unit u holds the same samples for any number of processes, and however often the work was
    interrupted.

    Args:
        replicas: number of replicas of each chosen seed image, by its number in the source.
        batch_size: samples per unit, >= 1; the last unit may be smaller.
        first: number of the first replica of a seed image, by its number; 0 where it says nothing.
    """

    def __init__(
        self, replicas: Mapping[int, int], batch_size: int, first: Mapping[int, int] | None = None
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        chosen = sorted(index for index, count in replicas.items() if count > 0)
        self.batch_size = batch_size
        self._first = dict(first or {})
        self._seed_indices = chosen
        self._ends = list(accumulate(replicas[index] for index in chosen))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def seed_images(self) -> int:
        """How many seed images are used."""
        return len(self._seed_indices)

    def counts(self) -> Iterator[tuple[int, int]]:
        """Each seed image that is used, with its number of replicas."""
        begin = 0
        for index, end in zip(self._seed_indices, self._ends, strict=True):
            yield index, end - begin
            begin = end

    def beginning_at(self, first: Mapping[int, int]) -> "Plan":
        """The same with other numbers for the first replicas."""
        return Plan(dict(self.counts()), self.batch_size, first)

    @property
    def units(self) -> int:
        """How many units there are."""
        return -(-len(self) // self.batch_size)

    def unit(self, number: int) -> list[PlannedSample]:
        """The samples of one unit, in order."""
        start = number * self.batch_size
        return [self._sample(i) for i in range(start, min(start + self.batch_size, len(self)))]

    def batch_length(self, number: int) -> int:
        """How many samples a unit holds; 0 for units that are not planned."""
        return max(0, min(self.batch_size, len(self) - number * self.batch_size))

    def inversions(self, paths: int) -> int:
        """How many inversions there are in all: a unit makes each of its own, and keeps none.

        Args:
            paths: source paths of an image, >= 1; replica k starts from number k % paths.
        """
        total = begin = 0
        for end in self._ends:
            first = min(end - begin, self.batch_size - begin % self.batch_size)
            whole_units, rest = divmod(end - begin - first, self.batch_size)
            total += min(first, paths) + min(rest, paths)
            total += whole_units * min(self.batch_size, paths)
            begin = end
        return total

    def _sample(self, number: int) -> PlannedSample:
        place = bisect_right(self._ends, number)
        begin = self._ends[place - 1] if place else 0
        index = self._seed_indices[place]
        return PlannedSample(index, number - begin + self._first.get(index, 0))


def count_replicas(
    source: Source,
    expansion_ratio: int | Mapping[str, int],
    *,
    balance: bool = False,
    only_classes: Collection[str] | None = None,
    limit: int | None = None,
) -> dict[int, int]:
    """How many replicas each seed image gets.

    Args:
        source: the seed images.
        expansion_ratio: replicas per seed image, >= 0; or one number per class name.
        balance: raise every class to the size that the largest one reaches with its ratio, real
            and synthetic images together; smaller classes get more replicas per image.
        only_classes: names of the classes to expand; None: all.
        limit: the largest number of seed images to use, taken in turn from each class. Their
            replicas are the same as without a limit.

    Raises:
        ValueError: an argument breaks its rule.
    """
    ratios = _ratios(source.classes, expansion_ratio)
    chosen = set(source.classes if only_classes is None else only_classes)
    unknown = sorted(chosen - set(source.classes))
    if unknown:
        raise ValueError(f"only_classes: there is no class {unknown[0]!r} in the source.")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}.")
    sizes = Counter(source.labels)
    of_class: dict[int, list[int]] = {}
    for index, label in enumerate(source.labels):
        of_class.setdefault(label, []).append(index)
    target = max((n * (ratios[label] + 1) for label, n in sizes.items()), default=0)
    replicas: dict[int, int] = {}
    for label, members in of_class.items():
        wanted = target - len(members) if balance else ratios[label] * len(members)
        each, more = divmod(wanted, len(members))
        if source.classes[label] in chosen:
            replicas.update({index: each + (i < more) for i, index in enumerate(members)})
    if limit is not None:
        replicas = {i: replicas[i] for i in _in_turn(of_class, replicas)[:limit]}
    most = max(replicas, key=lambda index: replicas[index], default=None)
    if most is not None and replicas[most] > MAX_REPLICAS:
        raise ValueError(
            f"expansion_ratio (and balance) must give a seed image at most {MAX_REPLICAS:,} "
            f"replicas, got {replicas[most]:,} for class {source.classes[source.labels[most]]!r}."
        )
    if not any(replicas.values()):
        raise ValueError("nothing to make: no seed image has a replica to come.")
    return replicas


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two plans' facts, one line each: ``settings.steps: 50 -> 100``."""
    lines = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: {old!r} -> {new!r}")
    return lines


def _ratios(classes: Sequence[str], expansion_ratio: int | Mapping[str, int]) -> list[int]:
    if isinstance(expansion_ratio, Mapping):
        unknown = sorted(set(expansion_ratio) - set(classes))
        if unknown:
            raise ValueError(f"expansion_ratio: there is no class {unknown[0]!r} in the source.")
        ratios = [expansion_ratio.get(name, 0) for name in classes]
    else:
        ratios = [expansion_ratio] * len(classes)
    for ratio in ratios:
        if isinstance(ratio, bool) or not isinstance(ratio, int) or ratio < 0:
            raise ValueError(f"expansion_ratio must be an integer >= 0, got {ratio!r}.")
    return ratios


def _in_turn(of_class: dict[int, list[int]], among: Mapping[int, int]) -> list[int]:
    """Seed images that get replicas: the first of each class, the second of each class, ..."""
    ranked = [
        (rank, label, index)
        for label, members in of_class.items()
        for rank, index in enumerate(members)
        if among.get(index, 0) > 0
    ]
    return [index for _, _, index in sorted(ranked)]
