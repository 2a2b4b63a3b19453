"""Seed images that are there several times: each gets replicas of its own."""

from collections import Counter
from collections.abc import Callable

from dreamda_aug.expansion.replicas import Plan
from dreamda_aug.expansion.seed_images import Unreadable, digest_of_file, read_storable
from dreamda_aug.inputs.file_lists import FileSource
from dreamda_aug.inputs.sources import HasFileDigests, Source


def first_replicas(
    source: Source, plan: Plan, progress: Callable[[int], None] = lambda samples: None
) -> dict[str, int]:
    """The first replica number of each seed image that equals an earlier one, by its number.

    Pixels, replica number, epoch and ``rng_seed`` decide an image, so equal seed images get equal
    replicas for equal numbers; here each goes on where the one before it ended. Files are compared
    byte for byte, and only those of equal size are read; images of other sources are compared by
    their pixels.

    Args:
        source: the seed images.
        plan: which of them are used, and how often.
        progress: called with the number of samples whose seed image was looked at.
    """
    sizes = source.sizes if isinstance(source, FileSource) else None
    of_size = Counter(sizes[index] for index, _ in plan.counts()) if sizes else Counter[int]()
    found: dict[str, int] = {}
    taken: dict[str, int] = {}
    for index, count in plan.counts():
        progress(count)
        if sizes and of_size[sizes[index]] == 1:
            continue
        content = _content(source, index)
        if content:
            first = taken.get(content, 0)
            taken[content] = first + count
            if first:
                found[str(index)] = first
    return found


def _content(source: Source, index: int) -> str:
    """A digest of what a seed image holds; empty where it is unreadable."""
    if isinstance(source, HasFileDigests):
        return digest_of_file(source, index)
    try:
        return read_storable(source, index).digests[0]
    except Unreadable:
        return ""
