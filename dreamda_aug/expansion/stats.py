"""Counts of a finished synthetic dataset."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dreamda_aug.expansion.manifest import ManifestLine, read_manifest
from dreamda_aug.expansion.metadata import read_skipped

# Prefix of a skipped entry whose image was made, and left out because a filter objected.
FLAGGED = "flagged: "
# Pairs of equal seed images that a warning names.
_SHOWN = 10


@dataclass
class Stats:
    """Counts of a finished dataset.

    Attributes:
        images: synthetic images by class name.
        flags: images in the dataset by filter's name.
        dropped: images that were made and not kept, by filter's name.
        unreadable: images that could not be made, by reason.
        events: images for which one of the generator's guards had to act.
        same_pixels: for the path of each seed image whose pixels equal those of an earlier one,
            and that has replicas of the same numbers, which are equal too: that one's path.
    """

    images: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    unreadable: Counter[str] = field(default_factory=Counter)
    events: int = 0
    same_pixels: dict[str, str] = field(default_factory=dict)

    @property
    def made(self) -> int:
        """Images in the dataset."""
        return sum(self.images.values())

    @property
    def repeated(self) -> int:
        """How many seed images are in ``same_pixels``."""
        return len(self.same_pixels)

    def warnings(self) -> list[str]:
        """What a user should look into, in words."""
        found = []
        every = self.made + sum(self.dropped.values())
        close = self.flags["seed-copy"] + self.dropped["seed-copy"]
        if every and close > 0.2 * every:
            found.append(
                f"{close} of {every} images hardly differ from their seed image: the perturbation "
                "is too weak. Measure a stronger one with `dreamda calibrate`."
            )
        copies = self.flags["copy"] + self.dropped["copy"]
        if copies:
            found.append(
                f"{copies} images look like a training image other than their seed: the model "
                "may have memorised it. Look at them before you publish the dataset."
            )
        if self.repeated:
            pairs = [f"{path} = {other}" for path, other in self.same_pixels.items()]
            more = ", ..." if len(pairs) > _SHOWN else ""
            found.append(
                f"{self.repeated} seed images are pixel for pixel equal to another one, and so are "
                f"their replicas ({', '.join(pairs[:_SHOWN])}{more}): delete one file of each "
                "pair, or overwrite it with the other, since copies get replicas of their own; "
                "then begin anew with --new (new=True)."
            )
        if self.unreadable:
            found.append(f"{sum(self.unreadable.values())} images were not made, because their "
                         "seed image is unreadable; see skipped.jsonl.")
        if self.events:
            found.append(f"a guard stepped in for {self.events} images; see events in the "
                         "manifest.")
        return found


def read_stats(root: str | Path) -> Stats:
    """Count a finished dataset; reads its manifest line by line."""
    return count(read_manifest(root), (entry["skipped"] for _, entry in read_skipped(Path(root))))


def count(lines: Iterable[ManifestLine], skipped: Iterable[str]) -> Stats:
    """Count a dataset.

    Args:
        lines: of its manifest; those of one seed image follow each other.
        skipped: the reason for each sample that is not there.
    """
    stats = Stats()
    # pixels of a seed image -> its path, and the end of the replica numbers that are taken
    seen: dict[bytes, tuple[str, int]] = {}
    for line in lines:
        stats.images[line.class_name] += 1
        stats.flags.update(line.flags)
        stats.events += bool(line.events)
        pixels = bytes.fromhex(line.seed_digest)
        other, end = seen.get(pixels, (line.seed_path, 0))
        if other != line.seed_path and line.replica < end:
            stats.same_pixels[line.seed_path] = other
        seen[pixels] = (line.seed_path, max(end, line.replica + 1))
    for reason in skipped:
        if reason.startswith(FLAGGED):
            stats.dropped.update(reason.removeprefix(FLAGGED).split(", "))
        else:
            stats.unreadable[reason] += 1
    return stats
