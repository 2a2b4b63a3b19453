"""Seed images: how many replicas each gets, in which batches; read, and compared with before."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

import PIL.Image
import torch
from torch import Tensor

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

    Args:
        replicas: number of replicas of each chosen seed image, by its number in the source.
        batch_size: samples per batch; the last batch may be smaller.
        first: number of the first replica of a seed image, by its number; else 0.
    """

    def __init__(
        self, replicas: Mapping[int, int], batch_size: int, first: Mapping[int, int] | None = None
    ):
        self.batch_size = batch_size
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


class Seed(NamedTuple):
    """A seed image, ready for the model; digests and loss as in `ManifestLine`.

    Attributes:
        values: its pixels at the model's size and channels, (1, C, H, W) in [0, 1].
        store: from an image like ``values`` to one of the seed image's size, for a PNG file.
    """

    values: Tensor
    digest: str
    file_digest: str
    loss: str
    store: Callable[[Tensor], PIL.Image.Image]


def open_seed(images: SeedImages, index: int, model: DiffusionModel) -> Seed:
    """Open and prepare a seed image; raises as `read_seed` does."""
    file_digest, pixels = images.file_digest(index), read_seed(images, index)
    store = pixels.store
    # one number, expanded: only shape and device are looked at, and large pixels are not kept
    like = torch.zeros(1).expand(pixels.values.shape)
    return Seed(fit_to(pixels.values, model), pixels.digests[0], file_digest, pixels.loss,
                lambda made: store(fit_back(made, like)))


def read_seed(images: SeedImages, index: int) -> Pixels:
    """Read the pixels of a seed image.

    Raises:
        Unreadable: the file is broken, too large or missing.
        ValueError, TypeError: a dataset's image is none that `read_pixels` takes.
    """
    is_decoded = False
    try:
        seed = images.open(index)
        if isinstance(seed.image, PIL.Image.Image):
            seed.image.load()
        is_decoded = True
        return seed.pixels
    except TooLarge as error:
        raise Unreadable(str(error)) from error
    except UNREADABLE as error:
        # errors of the machine; and what the user's program made is refused, as everywhere
        is_theirs = is_decoded and images.root is None
        if is_theirs or isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            raise
        # without the message: it may hold paths, and the record must be the same everywhere
        raise Unreadable(f"unreadable ({type(error).__name__})") from error


def seed_check(images: SeedImages, out: str) -> Callable[[Record], None]:
    """A function that raises ExpansionError if the seed image of a record was changed since.

    Records of one seed image follow each other. A file with the same bytes is not decoded; one
    that was stored anew with the same pixels is the same image.
    """
    last = -1

    def check(record: Record) -> None:
        nonlocal last
        index = record.seed_index
        if index == last:
            return
        if index >= len(images) or images.paths[index] != record.seed_path or not (
            images.file_digest(index) == record.seed_file_digest != ""
            or _pixel_digest(images, index) == record.seed_digest
        ):
            raise ExpansionError(
                f"{out}: seed image {record.seed_path} was changed since images were made from "
                "it. Put the old image back; or begin anew with --new (new=True), which sets the "
                "old result aside."
            )
        last = index

    return check


def first_replicas(images: SeedImages, plan: Plan) -> dict[str, int]:
    """The first replica number of each seed image that equals an earlier one, by its number.

    Equal seed images get equal replicas for equal numbers, so each continues where the one before
    it ended. Files are compared byte for byte, and only those of equal size are read; images of
    other sources are compared by their pixels.
    """
    of_size = Counter(images.size(index) for index, _ in plan.counts())
    found: dict[str, int] = {}
    taken = Counter[str]()
    for index, count in plan.counts():
        if images.root is not None and of_size[images.size(index)] == 1:
            continue
        content = (_pixel_digest(images, index) if images.root is None
                   else images.file_digest(index))
        if content:
            if taken[content]:
                found[str(index)] = taken[content]
            taken[content] += count
    return found


def _pixel_digest(images: SeedImages, index: int) -> str:
    """Digest of an image's pixels; empty if it is unreadable."""
    try:
        return read_seed(images, index).digests[0]
    except Unreadable:
        return ""
