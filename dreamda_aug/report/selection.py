"""Which images of a large dataset are shown: whole families, flagged ones first, of every class."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from dreamda_aug.expansion.manifest import ManifestLine

# Synthetic images on a page; their seed images come on top.
MAX_IMAGES = 2000
# Of one seed image, where not all images fit on the page.
MAX_REPLICAS = 8


@dataclass
class Family:
    """The synthetic images of one seed image, by replica."""

    class_name: str
    seed_index: int
    lines: list[ManifestLine]

    @property
    def flagged(self) -> bool:
        """Whether a filter or a guard objected to one of them."""
        return any(line.flags or line.events for line in self.lines)


@dataclass
class Selection:
    """Chooses families while a manifest is read, and holds no more than it may show.

    Args:
        sizes: synthetic images in the dataset by class, in the order of the page.
        limit: how many may be shown.
    """

    sizes: Mapping[str, int]
    limit: int = MAX_IMAGES
    _shares: dict[str, int] = field(init=False)
    _flagged: dict[str, list[Family]] = field(init=False)
    _ordinary: dict[str, list[Family]] = field(init=False)
    _held: Counter[tuple[str, bool]] = field(init=False, default_factory=Counter)
    _open: Family | None = None

    def __post_init__(self) -> None:
        self._shares = fair_shares(self.sizes, self.limit)
        self._flagged, self._ordinary = defaultdict(list), defaultdict(list)
        self._all_fit = sum(self.sizes.values()) <= self.limit

    def add(self, line: ManifestLine) -> None:
        """Take the next line of the manifest, in which the lines of a seed image follow another."""
        family = self._open
        if family is None or family.seed_index != line.seed_index:
            self._close()
            self._open = Family(line.class_name, line.seed_index, [line])
        else:
            family.lines.append(line)

    def families(self) -> dict[str, list[Family]]:
        """What to show, by class, in the order of the seed images; flagged families are at most
        half of a class, unless there are no others.
        """
        self._close()
        chosen = {}
        for name in self.sizes:
            share = self._shares[name]
            others = min(self._held[name, False], share // 2)
            kept = _at_most(self._flagged[name], share - others)
            kept += _at_most(self._ordinary[name], share - _size(kept))
            if kept:
                chosen[name] = sorted(kept, key=lambda family: family.seed_index)
        return chosen

    def _close(self) -> None:
        family, self._open = self._open, None
        if family is None:
            return
        kind = family.class_name, family.flagged
        if self._held[kind] >= self._shares.get(family.class_name, 0):
            return
        if not self._all_fit:
            family.lines.sort(key=lambda line: not (line.flags or line.events))
            del family.lines[MAX_REPLICAS:]
        family.lines.sort(key=lambda line: line.replica)
        self._held[kind] += len(family.lines)
        (self._flagged if family.flagged else self._ordinary)[family.class_name].append(family)


def fair_shares(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """How much of a total each class gets: equal parts, and what small classes leave over."""
    shares = {}
    for position, (name, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        shares[name] = min(size, total // (len(sizes) - position))
        total -= shares[name]
    return shares


def _size(families: list[Family]) -> int:
    return sum(len(family.lines) for family in families)


def _at_most(families: list[Family], count: int) -> list[Family]:
    """The first families, the last one cut short where it does not fit."""
    kept = []
    for family in families:
        if count <= 0:
            break
        kept.append(Family(family.class_name, family.seed_index, family.lines[:count]))
        count -= len(kept[-1].lines)
    return kept
