"""Numbers over a whole dataset, and the few that stand on top of its page."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from dreamda_aug.expansion.manifest import ManifestLine
from dreamda_aug.expansion.stats import FLAGGED, Stats

# What the filter seed-copy objects below where a dataset was made without it; its own default.
NEAR_COPY = 0.02


@dataclass(frozen=True)
class Figure:
    """A number on top of the page.

    Attributes:
        name: what it is.
        value: the number, or why there is none.
        note: what it says, in a sentence.
        alarming: whether a user should look into it.
    """

    name: str
    value: str
    note: str
    alarming: bool = False


@dataclass
class Overview:
    """What is counted over all lines of a manifest, and over what filters left out.

    Args:
        near_copy: distance from the seed image below which an image is a near-copy.
    """

    near_copy: float
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    distances: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    flags: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    near: Counter[str] = field(default_factory=Counter)
    seeds: set[int] = field(default_factory=set)
    left_out: int = 0
    left_out_for: Counter[str] = field(default_factory=Counter)

    def add(self, line: ManifestLine, scores: Mapping[str, float]) -> None:
        """Count an image of the dataset."""
        for name, value in scores.items():
            self.values[name].append(value)
        if "distance" in scores:
            self.distances[line.class_name].append(scores["distance"])
        self.flags[line.class_name].update(line.flags)
        self.near[line.class_name] += line.distance < self.near_copy or "seed-copy" in line.flags
        self.seeds.add(line.seed_index)

    def add_skipped(self, reason: str) -> None:
        """Count a sample that is not in the dataset."""
        if reason.startswith(FLAGGED):
            self.left_out += 1
            self.left_out_for.update(reason.removeprefix(FLAGGED).split(", "))


def near_copy_threshold(facts: Mapping[str, Any]) -> float:
    """Distance below which an image is a near-copy, as the dataset's own filter says."""
    for described in facts["filters"]:
        if described.get("name") == "seed-copy":
            return float(described.get("threshold", NEAR_COPY))
    return NEAR_COPY


def figures(
    facts: Mapping[str, Any], stats: Stats, overview: Overview, diversity: tuple[float, int],
    warnings: int,
) -> list[Figure]:
    """The numbers on top of the page.

    Args:
        facts: what `read_metadata` returns.
        stats: what `read_stats` returns.
        overview: the same dataset's.
        diversity: sum of the distances between replicas of one seed image, and their number.
        warnings: how many there are.
    """
    every = stats.made + overview.left_out
    not_made = sum(stats.unreadable.values())
    used, given = len(overview.seeds), facts["source"]["images"]
    counts = f"from {_count(used, 'seed image')}" + (f" of {given:,}" if used < given else "")
    counts += f" in {_count(len(stats.images), 'class')}"
    if overview.left_out:
        counts += f"; filters left out {overview.left_out:,} more"
    if not_made:
        counts += f"; {not_made:,} could not be made"
    return [
        Figure("Synthetic images", f"{stats.made:,}", counts + ".", not_made > 0),
        _labels_kept(facts, stats, overview, every),
        _distance(overview.values.get("distance", ())),
        _diversity(*diversity),
        _near_copies(stats, overview, every),
        Figure("Warnings", str(warnings), "See below." if warnings else "Nothing to look into.",
               warnings > 0),
    ]


def class_table(
    facts: Mapping[str, Any], stats: Stats, overview: Overview
) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and a row for each class that begins with its name."""
    filters = [str(each["name"]) for each in facts["filters"]]
    labeled = "label" in filters
    others = [name for name in filters if name not in ("label", "seed-copy")]
    columns = ["class", "seed images", "synthetic", "mean distance", "near-copies"]
    columns += ["other label"] * labeled + [f"{name} flagged" for name in others]
    rows = []
    for name, seed_images in facts["source"]["classes"].items():
        made, flags = stats.images[name], overview.flags[name]
        distances = overview.distances[name]
        row = [name, f"{seed_images:,}", f"{made:,}",
               f"{fmean(distances):.3f}" if distances else "–", _part(overview.near[name], made)]
        row += [_part(flags["label"], made)] * labeled
        row += [_part(flags[other], made) for other in others]
        rows.append(row)
    return columns, rows


def _labels_kept(
    facts: Mapping[str, Any], stats: Stats, overview: Overview, every: int
) -> Figure:
    if not any(each.get("name") == "label" for each in facts["filters"]) or not every:
        return Figure("Labels kept", "not measured",
                      "Make the dataset with --filter label=CLASSIFIER to know.")
    lost = stats.flags["label"] + overview.left_out_for["label"]
    note = f"The classifier sees another class in {_count(lost, 'image')} of {every:,}."
    confidence = overview.values.get("label")
    if confidence:
        note += f" Mean probability of the right one: {fmean(confidence):.2f}."
    return Figure("Labels kept", f"{(every - lost) / every:.1%}", note, lost > 0.1 * every)


def _distance(distances: Sequence[float]) -> Figure:
    if not distances:
        return Figure("Distance", "none", "There are no images.")
    return Figure(
        "Distance", f"{fmean(distances):.3f}",
        f"Mean from the seed image, over pixels in 0 to 1; median {median(distances):.3f}, "
        f"largest {max(distances):.3f}.",
    )


def _diversity(total: float, pairs: int) -> Figure:
    if not pairs:
        return Figure("Diversity", "not measured", "No seed image has two replicas on this page.")
    return Figure("Diversity", f"{total / pairs:.3f}",
                  "Mean distance between two replicas of one seed image, over "
                  f"{_count(pairs, 'pair')} on this page.")


def _near_copies(stats: Stats, overview: Overview, every: int) -> Figure:
    near = sum(overview.near.values()) + overview.left_out_for["seed-copy"]
    copies = stats.flags["copy"] + overview.left_out_for["copy"]
    note = (f"{_count(near, 'image')} of {every:,}: distance from the seed image below "
            f"{overview.near_copy:g}.")
    if copies:
        note += f" {_count(copies, 'image')} may copy another training image."
    # the share from which `Stats.warnings` speaks up
    return Figure("Near-copies", f"{near / max(every, 1):.1%}", note,
                  near > 0.2 * every or copies > 0)


def _part(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.0%})" if total else "–"


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"{number:,} {noun}"
    return f"{number:,} {noun}{'es' if noun.endswith('s') else 's'}"
