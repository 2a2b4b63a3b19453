"""Counts of a finished dataset, and what a user should look into."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dreamda_aug.expansion.manifest import read_manifest, read_skipped
from dreamda_aug.expansion.storage import OutputFolder

# Prefix of the reason of a sample that was made, and left out because a filter objected.
FLAGGED = "flagged: "
# Names that a warning lists.
_SHOWN = 10


@dataclass
class Stats:
    """Counts of a finished dataset.

    Attributes:
        images: synthetic images by class name.
        flags: images in the dataset by filter's name.
        dropped: images that were made and not kept, by filter's name.
        unreadable: images that could not be made, by reason.
        events: images that failed a check and were retried or replaced.
        same_pixels: for the path of each seed image whose pixels equal those of an earlier one,
            and that has replicas of the same numbers, which are equal too: that one's path.
        small_batches: images that were made in smaller batches than planned.
        losses: images of which a PNG file does not keep all, by what it does not keep.
    """

    images: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    events: int = 0
    same_pixels: dict[str, str] = field(default_factory=dict)
    small_batches: int = 0
    losses: Counter[str] = field(default_factory=Counter)

    @property
    def made(self) -> int:
        """Images in the dataset."""
        return sum(self.images.values())

    @property
    def left_out(self) -> int:
        """Planned images that are not in the dataset."""
        return self.dropped.total() + self.unreadable.total()

    def warnings(self, classes: Iterable[str] = ()) -> list[str]:
        """What a user should look into, as sentences.

        Args:
            classes: the dataset's, to name those without images.
        """
        every = self.made + self.dropped.total()
        close = self.flags["seed-copy"] + self.dropped["seed-copy"]
        copies = self.flags["copy"] + self.dropped["copy"]
        pairs = _first_of([f"{path} = {other}" for path, other in self.same_pixels.items()])
        empty = [repr(name) for name in classes if not self.images[name]]
        found = {
            f"{close} of {every} images hardly differ from their seed image: the perturbation is "
            "too weak. Measure a stronger one with `dreamda calibrate`.": close > 0.2 * every,
            f"{copies} images look like a training image other than their seed: the model may have "
            "memorised it. Look at them before you publish the dataset.": copies,
            f"{len(self.same_pixels)} seed images are pixel for pixel equal to another one, and so "
            f"are their replicas ({pairs}): delete one file of each pair, or overwrite it with the "
            "other, since copies get replicas of their own; then begin anew with --new "
            "(new=True).": self.same_pixels,
            f"{self.unreadable.total()} images were not made, because their seed image is "
            "unreadable; see skipped.jsonl.": self.unreadable,
            f"{self.events} images failed a check and were retried or replaced; see events in the "
            "manifest.": self.events,
            f"memory ran out: {self.small_batches} images were made in smaller batches than "
            "planned (see batch_size in the manifest), so another run may make other last "
            "bits.": self.small_batches,
            **{f"{number} images are {loss}: PNG files keep no more of such images.": number
               for loss, number in self.losses.items()},
            f"{len(empty)} classes have no synthetic image ({_first_of(empty)}). Their folders are "
            "empty, so that the other classes keep their numbers: read the dataset with "
            "ImageFolder(out, allow_empty=True).": empty,
        }
        return [warning for warning, holds in found.items() if holds]


def read_stats(out: str | Path | OutputFolder) -> Stats:
    """Count a finished dataset; reads its manifest line by line."""
    stats = Stats()
    # pixels of a seed image -> its path, and the end of the replica numbers that are taken
    seen: dict[str, tuple[str, int]] = {}
    for line in read_manifest(out):  # lines of one seed image follow each other
        stats.images[line.class_name] += 1
        stats.flags.update(line.flags)
        stats.events += bool(line.events)
        stats.small_batches += line.batch_size < sum(count for _, count in line.layout)
        if line.loss:
            stats.losses[line.loss] += 1
        other, end = seen.get(line.seed_digest, (line.seed_path, 0))
        if other != line.seed_path and line.replica < end:
            stats.same_pixels[line.seed_path] = other
        seen[line.seed_digest] = (line.seed_path, max(end, line.replica + 1))
    for each in read_skipped(out):
        if each.skipped.startswith(FLAGGED):
            stats.dropped.update(each.skipped.removeprefix(FLAGGED).split(", "))
        else:
            stats.unreadable[each.skipped] += 1
    return stats


def _first_of(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
