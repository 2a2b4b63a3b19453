"""What an expansion will make: which replicas of which seed images, in which batches."""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from dreamda_aug.arguments import whole
from dreamda_aug.inputs.seed_images import SeedImages

DEFAULT_RATIO = 5
# The most synthetic images of one seed image: more is a slip, and no plan could be listed.
MAX_REPLICAS = 1_000_000


class PlannedSample(NamedTuple):
    """One synthetic image to make, by the number of its seed image and of the replica."""

    seed_index: int
    replica: int

    @property
    def id(self) -> str:
        """Its name in the dataset."""
        return f"{self.seed_index:08d}_{self.replica:04d}"


class Plan:
    """All samples in order, cut into batches that are generated as a whole.

    The last bits of a result depend on the shape of its batch, so the batches are part of the plan.

    Args:
        replicas: number of replicas of each chosen seed image, by its number in the source.
        batch_size: samples per batch; the last batch may be smaller.
        first: number of the first replica of a seed image, by its number; else 0.
    """

    def __init__(
        self, replicas: Mapping[int, int], batch_size: int, first: Mapping[int, int] | None = None
    ):
        self.batch_size = whole("batch_size", batch_size, 1)
        self._first = dict(first or {})
        self._seed_indices = sorted(index for index, count in replicas.items() if count > 0)
        self._ends = list(accumulate(replicas[index] for index in self._seed_indices))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def seed_images(self) -> int:
        """How many seed images are used."""
        return len(self._seed_indices)

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return -(-len(self) // self.batch_size)

    def counts(self) -> Iterator[tuple[int, int]]:
        """Each seed image that is used, with its number of replicas."""
        for index, begin, end in zip(self._seed_indices, [0, *self._ends], self._ends):
            yield index, end - begin

    def beginning_at(self, first: Mapping[int, int]) -> "Plan":
        """The same plan with other numbers for the first replicas."""
        return Plan(dict(self.counts()), self.batch_size, first)

    def batch(self, number: int) -> list[PlannedSample]:
        """The samples of one batch, in order."""
        samples = []
        start = number * self.batch_size
        for place in range(start, start + self.batch_length(number)):
            position = bisect_right(self._ends, place)
            index = self._seed_indices[position]
            begin = self._ends[position - 1] if position else 0
            samples.append(PlannedSample(index, place - begin + self._first.get(index, 0)))
        return samples

    def batch_length(self, number: int) -> int:
        """How many samples a batch holds; 0 for batches that are not planned."""
        return max(0, min(self.batch_size, len(self) - number * self.batch_size))

    def inversions(self, paths: int) -> int:
        """How many inversions all batches make, if replica k starts from path k % ``paths``."""
        total = begin = 0
        for end in self._ends:
            first = min(end - begin, self.batch_size - begin % self.batch_size)
            whole_batches, rest = divmod(end - begin - first, self.batch_size)
            total += min(first, paths) + min(rest, paths)
            total += whole_batches * min(self.batch_size, paths)
            begin = end
        return total


def count_replicas(
    images: SeedImages,
    expansion_ratio: int | Mapping[str, int],
    *,
    balance: bool = False,
    only_classes: Collection[str] | None = None,
    limit: int | None = None,
) -> dict[int, int]:
    """How many replicas each seed image gets; arguments are those of `Expansion`.

    Seed images have the same replicas with a limit as without one.
    """
    classes, labels = images.classes, images.labels
    ratios = dict.fromkeys(classes, DEFAULT_RATIO) | dict(expansion_ratio) if isinstance(
        expansion_ratio, Mapping) else dict.fromkeys(classes, expansion_ratio)
    chosen = set(classes if only_classes is None else only_classes)
    for name, given in (("expansion_ratio", ratios), ("only_classes", chosen)):
        for unknown in sorted(set(given) - set(classes)):
            raise ValueError(f"{name}: there is no class {unknown!r} in the source.")
    ratio_of = [whole("expansion_ratio", ratios[name], 0) for name in classes]
    limit = None if limit is None else whole("limit", limit, 1)
    of_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        of_class.setdefault(label, []).append(index)
    target = max((len(each) * (ratio_of[label] + 1) for label, each in of_class.items()), default=0)
    replicas: dict[int, int] = {}
    for label, members in of_class.items():
        wanted = target - len(members) if balance else ratio_of[label] * len(members)
        each, more = divmod(wanted, len(members))
        if classes[label] in chosen:
            replicas |= {index: each + (i < more) for i, index in enumerate(members)}
    if limit is not None:
        # the first of each class, the second of each class, ...
        in_turn = sorted((rank, label, index) for label, members in of_class.items()
                         for rank, index in enumerate(members) if replicas.get(index, 0) > 0)
        replicas = {index: replicas[index] for _, _, index in in_turn[:limit]}
    most = max(replicas, key=lambda index: replicas[index], default=None)
    if most is None or replicas[most] == 0:
        raise ValueError("nothing to make: no seed image has a replica to come.")
    if replicas[most] > MAX_REPLICAS:
        raise ValueError(
            f"expansion_ratio (and balance) must give a seed image at most {MAX_REPLICAS:,} "
            f"replicas, got {replicas[most]:,} for class {classes[labels[most]]!r}."
        )
    return replicas
