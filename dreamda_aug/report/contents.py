"""One HTML page on a synthetic dataset: pictures, distributions, settings, warnings."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.layouts import StoredImages
from dreamda_aug.expansion.manifest import MANIFEST, read_manifest, read_skipped
from dreamda_aug.expansion.metadata import (
    PATHS,
    UNKNOWN,
    find_path,
    read_metadata,
    recorded_images,
)
from dreamda_aug.expansion.stats import Stats, read_stats
from dreamda_aug.files import WRITE_HERE, local_path, parse_json, write_atomically
from dreamda_aug.inputs.seed_images import SeedImages, open_seed_images
from dreamda_aug.machine_paths import without_paths
from dreamda_aug.report.figures import Histogram, histogram
from dreamda_aug.report.orderings import Worst, measured, scores_of
from dreamda_aug.report.overview import Overview, class_table, figures, near_copy_threshold
from dreamda_aug.report.page import Page, render
from dreamda_aug.report.selection import Selection
from dreamda_aug.report.sheets import PictureMaker

METRICS = "metrics.json"
_MEANINGS = {
    "distance": "Distance from the seed image (root mean square over pixels)",
    "label": "Probability of the seed image's class, by the given classifier",
    "copy": "Distance to the nearest other training image (1: as real neighbours)",
}


def write_report(
    root: str | Path,
    out: str | Path | None = None,
    *,
    source: str | Path | SeedImages | None = None,
    metrics: bool = False,
) -> Path:
    """Write the report of a finished dataset.

    The page holds everything that it shows, at most 2,000 synthetic images of 256 pixels; it asks
    nothing of a network and names no path of this machine.

    Args:
        root: the dataset's folder.
        out: the page; None: ``report.html`` in the folder.
        source: the seed images, where they have moved; None: where the record says. Without them
            the page shows the synthetic images alone, and says so.
        metrics: compute `compare_folders` first and keep it in ``metrics.json``; for class folders.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: the folder holds no finished dataset.
        ExpansionError: the record is damaged.
        ValueError: ``metrics`` for a dataset that is not in folders; or a place is a URL.
    """
    root = Path(root)
    out = root / "report.html" if out is None else local_path(out, "out", WRITE_HERE)
    facts = read_metadata(root)
    stats = read_stats(root)
    if stats.made == 0 and stats.left_out < facts["samples"]:
        raise ExpansionError(
            f"{root / MANIFEST}: expected the lines of {facts['samples']} images, found none."
        )
    seed_images, notes = _open_seed_images(root, facts, source)
    if metrics:
        _compute_metrics(root, facts, seed_images)
    known = [*_paths_of(root, facts), str(root), str(root.resolve())]
    page = _page(root, facts, stats, seed_images, notes, known)
    write_atomically(out, render(page).encode())
    return out


def _page(
    root: Path, facts: Mapping[str, Any], stats: Stats, seed_images: SeedImages | None,
    notes: list[str], known: list[str],
) -> Page:
    overview = Overview(near_copy_threshold(facts))
    sizes = {name: stats.images[name] for name in facts["source"]["classes"]} | stats.images
    selection, worst = Selection(sizes), Worst()
    for line in read_manifest(root):
        scores = scores_of(line)
        overview.add(line, scores)
        selection.add(line)
        worst.add(line, scores)
    for entry in read_skipped(root):
        overview.add_skipped(entry.skipped)
    families = selection.families()
    orderings = measured(overview.values)
    worst_lines = [(ordering, worst.lines(ordering)) for ordering in orderings]
    shown = [line for of_class in families.values() for family in of_class
             for line in family.lines]
    files = [line.file for line in shown]
    files += [line.file for _, lines in worst_lines for line in lines]
    maker = PictureMaker(StoredImages(root, files), seed_images, len(shown))
    sheets = maker.sheets(families, stats.images)
    warnings = [without_paths(str(note), known)
                for note in (*facts["source"].get("problems", ()),
                             *stats.warnings(facts["source"]["classes"]), *notes)]
    columns, classes = class_table(facts, stats, overview)
    return Page(
        title=f"Synthetic images: {root.resolve().name}",
        total=stats.made,
        figures=figures(facts, stats, overview, maker.diversity, len(warnings)),
        warnings=warnings,
        worst=[(ordering, maker.pairs(lines)) for ordering, lines in worst_lines if lines],
        sheets=sheets,
        histograms=_histograms(overview),
        scatter=maker.scatter(),
        columns=columns,
        classes=classes,
        metrics=[(name, without_paths(value, known)) for name, value in _read_metrics(root)],
        settings=[(name, without_paths(value, known)) for name, value in _settings(facts)],
    )


def _paths_of(root: Path, facts: Mapping[str, Any]) -> list[str]:
    """The paths of this machine that a dataset's metadata name."""
    source = facts[PATHS]["source"] or {}
    named = (facts[PATHS]["model"], facts[PATHS].get("lora"), *source.values())
    return [str(find_path(root, path, "source")) for path in named
            if isinstance(path, str) and not path.startswith(UNKNOWN)]


def _open_seed_images(
    root: Path, facts: Mapping[str, Any], source: str | Path | SeedImages | None
) -> tuple[SeedImages | None, list[str]]:
    if source is not None:
        return open_seed_images(source), []
    try:
        found = recorded_images(root, facts)
        if found is None:
            return None, ["The dataset was made from a dataset object: seed images are not shown."]
        return found, []
    except (OSError, ValueError, ImportError, ExpansionError) as error:
        return None, [f"The seed images could not be opened, and are not shown: {error}"]


def _histograms(overview: Overview) -> list[Histogram]:
    # the score of seed-copy is the distance once more
    return [
        histogram(_MEANINGS.get(name, name), values,
                  overview.near_copy if name == "distance" else None)
        for name, values in overview.values.items() if values and name != "seed-copy"
    ]


def _compute_metrics(root: Path, facts: Mapping[str, Any], source: SeedImages | None) -> None:
    from dreamda_aug.metrics import compare_folders

    if facts.get("image_format") != "folder":
        raise ValueError("metrics need synthetic images in class folders, not in shards.")
    if source is None or source.root is None:
        raise ValueError(
            "metrics need the seed images in class folders, and they were not found where the "
            "record says; give source, the folder where they are."
        )
    found = asdict(compare_folders(source.root, root))
    write_atomically(root / METRICS, (json.dumps(found, indent=2) + "\n").encode())


def _read_metrics(root: Path) -> Iterator[tuple[str, str]]:
    path = root / METRICS
    if path.is_file():
        for name, value in parse_json(path.read_bytes(), str(path)).items():
            if isinstance(value, list):
                value = " ".join(map(str, value))
            if value not in (None, ""):
                yield name, f"{value:.4g}" if isinstance(value, float) else str(value)


def _settings(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Everything that the dataset was begun with, flat."""
    def flat(value: object, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for key, item in value.items():
                yield from flat(item, f"{name}.{key}" if name else key)
        else:
            yield name, str(value)

    shown = {name: value for name, value in facts.items() if name not in ("conditions", "source")}
    return flat(shown, "")
