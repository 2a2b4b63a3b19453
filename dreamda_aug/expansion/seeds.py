"""Seed images: how many replicas each gets, in which batches; read, and compared with before."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import PIL.Image
import torch

from dreamda_aug.arguments import whole
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.manifest import Record
from dreamda_aug.inputs.listing import MACHINE_ERRORS, UNREADABLE, TooLarge
from dreamda_aug.inputs.pixels import Pixels, fit_back, fit_to
from dreamda_aug.inputs.seed_images import SeedImages
from dreamda_aug.models import DiffusionModel

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
    ``replicas`` counts those of each seed image, by its number in the source. ``first`` has the
    number of its first replica, by the same number as text, where that is not 0.
    """

    def __init__(
        self, replicas: Mapping[int, int], batch_size: int, first: Mapping[str, int] | None = None
    ):
        self.replicas = {index: replicas[index] for index in sorted(replicas) if replicas[index]}
        self.batch_size, self._first = batch_size, first or {}
        self._indices, self._ends = list(self.replicas), list(accumulate(self.replicas.values()))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return -(-len(self) // self.batch_size)

    def batch(self, number: int) -> list[PlannedSample]:
        """The samples of one batch, in order."""
        samples, start = [], number * self.batch_size
        for place in range(start, start + self.batch_length(number)):
            position = bisect_right(self._ends, place)
            index = self._indices[position]
            replica = place - self._ends[position] + self.replicas[index]
            samples.append(PlannedSample(index, replica + self._first.get(str(index), 0)))
        return samples

    def batch_length(self, number: int) -> int:
        """How many samples a batch holds; 0 for batches that are not planned."""
        return max(0, min(self.batch_size, len(self) - number * self.batch_size))

    def inversions(self, paths: int) -> int:
        """How many inversions all batches make, if replica k starts from path k % ``paths``."""
        size, total = self.batch_size, 0
        for begin, end in pairwise([0, *self._ends]):
            cuts = [begin, *range((begin // size + 1) * size, end, size), end]
            total += sum(min(b - a, paths) for a, b in pairwise(cuts))
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
    ratio_of = [whole("expansion_ratio", ratios[name], 0, MAX_REPLICAS) for name in classes]
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
    if not any(replicas.values()):
        raise ValueError("nothing to make: no seed image has a replica to come.")
    return replicas


class Unreadable(Exception):
    """A seed image cannot be used; the message is the same on every machine."""


def open_seed(images: SeedImages, index: int, model: DiffusionModel) -> Pixels:
    """A seed image in the model's size and channels, whose ``store`` leads back to its own.

    Raises as `read_seed` does.
    """
    pixels = read_seed(images, index)
    store = pixels.store
    # one number, expanded: only shape and device are looked at, and large pixels are not kept
    like = torch.zeros(1).expand(pixels.values.shape)
    return replace(pixels, values=fit_to(pixels.values, model),
                   store=lambda made: store(fit_back(made, like)))


def read_seed(images: SeedImages, index: int) -> Pixels:
    """Read the pixels of a seed image; Unreadable if its file is broken, too large or missing."""
    is_theirs = False
    try:
        seed = images.open(index)
        if isinstance(seed.image, PIL.Image.Image):
            seed.image.load()
        is_theirs = images.root is None  # what the user's program made is refused, as everywhere
        return seed.pixels
    except TooLarge as error:
        raise Unreadable(str(error)) from error
    except UNREADABLE as error:
        if is_theirs or isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            raise
        # without the message: it may hold paths, and the record must be the same everywhere
        raise Unreadable(f"unreadable ({type(error).__name__})") from error


def seed_check(images: SeedImages, out: str) -> Callable[[Record], None]:
    """A function that raises ExpansionError if the seed image of a record was changed since.

    A file with the same bytes is not decoded; one that was stored anew with the same pixels is the
    same image.
    """
    @lru_cache(maxsize=1)  # records of one seed image follow each other
    def check(index: int, path: str, file_digest: str, digest: str) -> None:
        if index >= len(images) or images.paths[index] != path or not (
                images.file_digest(index) == file_digest != ""
                or _pixel_digest(images, index) == digest):
            raise ExpansionError(
                f"{out}: seed image {path} was changed since images were made from it. Put the old "
                "image back; or begin anew with --new (new=True), which sets the old result aside.")

    return lambda record: check(record.seed_index, record.seed_path, record.seed_file_digest,
                                record.seed_digest)


def first_replicas(images: SeedImages, plan: Plan) -> dict[str, int]:
    """The first replica number of each seed image that equals an earlier one, by its number.

    Equal seed images get equal replicas for equal numbers, so each continues where the one before
    it ended. Files are compared byte for byte, and only those of equal size are read; images of
    other sources are compared by their pixels.
    """
    of_size = Counter(map(images.size, plan.replicas))
    found: dict[str, int] = {}
    taken = Counter[str]()
    for index, count in plan.replicas.items():
        if images.root is None:
            content = _pixel_digest(images, index)
        else:
            content = images.file_digest(index) if of_size[images.size(index)] > 1 else ""
        if content and taken[content]:
            found[str(index)] = taken[content]
        taken[content] += count
    return found


def _pixel_digest(images: SeedImages, index: int) -> str:
    """Digest of an image's pixels; empty if it is unreadable."""
    try:
        return read_seed(images, index).digests[0]
    except Unreadable:
        return ""
