"""One HTML page on a synthetic dataset: pictures, distributions, settings, warnings."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import torch

from dreamda_aug.arguments import checked
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.card import Stats, read_stats
from dreamda_aug.expansion.layouts import StoredImages
from dreamda_aug.expansion.manifest import (
    MANIFEST,
    ManifestLine,
    flat,
    read_manifest,
    read_metadata,
)
from dreamda_aug.expansion.regeneration import UNKNOWN, find_path, recorded_images
from dreamda_aug.files import WRITE_HERE, local_path, read_json, write_atomically
from dreamda_aug.inputs.listing import UNREADABLE
from dreamda_aug.inputs.seed_images import SeedImages, open_seed_images
from dreamda_aug.machine_paths import relative_name, without_paths
from dreamda_aug.report.judging import LabelsKept, judge_labels
from dreamda_aug.report.overview import (
    MAX_REPLICAS,
    Overview,
    choose_families,
    histogram,
    scatter,
    scores_of,
)
from dreamda_aug.report.rendering import (
    FEATURE_SIDE,
    SMALL_SIDE,
    Thumbnail,
    make_thumbnail,
    pair_distances,
    render_page,
)

METRICS = "metrics.json"
_MEANINGS = {
    "distance": "Distance from the seed image (root mean square over pixels)",
    "label": "Probability of the seed image's class, by the given classifier",
    "copy": "Distance to the nearest other training image (1: as real neighbours)",
}
_NAMES = {"label": "label confidence", "copy": "copy score"}


class Picture(NamedTuple):
    """An image on the page: a data URI (empty if it is not at hand), its caption, its flags, and
    its scores by name.
    """

    data: str
    caption: str
    flags: tuple[str, ...] = ()
    scores: Mapping[str, float] = {}


class Group(NamedTuple):
    """A seed image, or None if seed images are not shown, and replicas of it."""

    seed: Picture | None
    replicas: list[Picture]


@checked
def write_report(
    root: str | Path, out: str | Path | None = None, *, source: Any = None,
    model: str | Path | None = None, lora: str | Path | None = None, metrics: bool = False,
    judge: bool = True,
) -> Path:
    """Write the report of a finished dataset.

    The page is one file with at most 2,000 synthetic images of 256 pixels. It needs no network, and
    contains no path of this machine.

    Args:
        root: the dataset's folder.
        out: the page, or None for ``report.html`` in the folder.
        source: the seed images, as `expand` takes them, or None for the recorded ones. Without
            them the page has the synthetic images alone, with a warning.
        model: the dataset's model, which judges labels, or None for where the record has it.
        lora: its LoRA weights, or None for where the record has them.
        metrics: compute `compare_folders` first and keep it in ``metrics.json``; for class folders.
        judge: if there was no ``label`` filter and the model is on this machine, judge how many of
            at most 192 synthetic images keep the class of their seed image.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: the folder holds no finished dataset.
        ExpansionError: the record is damaged.
        ValueError: ``metrics`` for a dataset that is not in folders; or a place is a URL.
    """
    root = Path(root)
    out = root / "report.html" if out is None else local_path(out, "out", WRITE_HERE)
    metadata, stats = read_metadata(root), read_stats(root)
    if stats.made == 0 and stats.left_out < metadata["samples"]:
        raise ExpansionError(f"{root / MANIFEST}: expected the lines of {metadata['samples']} "
                             "images, found none.")
    seed_images, notes = _open_seed_images(root, metadata, source)
    if metrics:
        _compute_metrics(root, metadata, seed_images)
    overview = Overview(metadata)
    page = report_page(root, metadata, stats, overview, seed_images, notes)
    labels: LabelsKept | str = "not asked for"
    if judge and "label" not in overview.filters:
        labels = judge_labels(root, metadata, seed_images, overview.seeds, model, lora)
    page["labels"] = labels if isinstance(labels, LabelsKept) else without_paths(
        labels, [str(model), str(lora), *_paths_of(root, metadata)])
    write_atomically(out, render_page("report.html.jinja", "report.js", "report.css",
                                      **page).encode())
    return out


def report_page(
    root: Path, metadata: Mapping[str, Any], stats: Stats, overview: Overview,
    seed_images: SeedImages | None, notes: list[str],
) -> dict[str, Any]:
    """Everything that the page shows but for its labels, as its template takes it."""
    known, classes = _paths_of(root, metadata), metadata["source"]["classes"]

    def public(value: object) -> str:
        return without_paths(str(value), known)

    sizes = {name: stats.images[name] for name in classes} | stats.images
    families = choose_families(overview.watch(read_manifest(root)), sizes)
    worst = overview.worst()
    shown = [line for of_class in families.values() for line in chain.from_iterable(of_class)]
    maker = _PictureMaker(StoredImages(root, [
        line.file for line in (*shown, *chain.from_iterable(worst.values()))]),
        seed_images, 256 if len(shown) <= 500 else 128)  # a page of 12 MB at most
    sheets: list[dict[str, Any]] = [
        {"name": name, "anchor": f"class-{number}", "total": stats.images[name],
         "groups": [maker.group(family) for family in of_class]}
        for number, (name, of_class) in enumerate(families.items())]
    warnings = [public(note) for note in (
        *metadata["source"].get("problems", ()), *stats.warnings(classes), *notes)]
    distances, side = overview.values.get("distance", []), maker.largest
    return {
        "title": f"Synthetic images: {root.resolve().name}",
        "stats": stats, "overview": overview, "seed_images": metadata["source"]["images"],
        "distance": distances and (fmean(distances), median(distances), max(distances)),
        "confidence": fmean(overview.values["label"]) if overview.values.get("label") else None,
        "diversity": maker.diversity, "warnings": warnings, "shown": len(shown),
        "worst": [(ordering, [maker.group([line], is_sample=False) for line in lines])
                  for ordering, lines in worst.items()],
        "sheets": sheets, "flags": sorted({flag for sheet in sheets for group in sheet["groups"]
                                           for each in group.replicas for flag in each.flags}),
        # the score of seed-copy is the distance once more
        "histograms": [histogram(_MEANINGS.get(name, name), values)
                       for name, values in overview.values.items() if name != "seed-copy"],
        "scatter": scatter(*(torch.stack(each) if each else torch.zeros(0, FEATURE_SIDE**2)
                             for each in (maker.seed_features, maker.features))),
        "classes": classes,
        # a whole multiple of a small image's side, so it stays sharp
        "tile": max(56 // side, 1) * side if 0 < side <= SMALL_SIDE else 72,
        "metrics": [(name, public(value)) for name, value in _read_metrics(root)],
        "settings": [(name, public(value)) for name, value in flat(
            {name: value for name, value in metadata.items()
             if name not in ("conditions", "source")})],
    }


class _PictureMaker:
    """Makes the pictures of a page, and measures what is only in their pixels.

    ``diversity`` is the sum of the distances between replicas of one seed image on the sheets, of
    the first eight of each, and how many pairs these are.
    """

    def __init__(self, images: StoredImages, source: SeedImages | None, side: int):
        self._images, self._source, self._side = images, source, side
        self._folder = None if source is None or source.root is None else str(source.root)
        self._seeds: dict[int, Thumbnail | None] = {}
        self.features: list[torch.Tensor] = []
        self.seed_features: list[torch.Tensor] = []
        self.diversity, self.largest = (0.0, 0), 0

    def group(self, family: list[ManifestLine], is_sample: bool = True) -> Group:
        """Replicas behind their seed image; a sample counts for diversity and features."""
        images = [self._images.open(line.file) for line in family]
        thumbnails = [make_thumbnail(image, self._side) for image in images]
        seed = self._seed(family[0])
        if is_sample:
            total, count = pair_distances(images[:MAX_REPLICAS])
            self.diversity = self.diversity[0] + total, self.diversity[1] + count
            self.features += [each.features for each in thumbnails]
            self.largest = max(self.largest, *(each.side for each in thumbnails))
            if thumbnail := self._seeds.get(family[0].seed_index):
                self.seed_features.append(thumbnail.features)
        return Group(seed, list(map(self._replica, family, thumbnails)))

    def _replica(self, line: ManifestLine, thumbnail: Thumbnail) -> Picture:
        scores = scores_of(line)
        notes = [f"replica {line.replica} of {relative_name(line.seed_path, self._folder)}",
                 line.class_name, *(f"{_NAMES.get(name, name)} {value:.3g}"
                                    for name, value in scores.items() if name != "seed-copy")]
        if isinstance(line.condition, str):
            notes.append(f"prompt “{line.condition}”")
        flags = (*line.flags, *(f"guard: {event}" for event in line.events))
        return Picture(thumbnail.data, ", ".join(notes), flags, scores)

    def _seed(self, line: ManifestLine) -> Picture | None:
        source, index = self._source, line.seed_index
        if source is None:
            return None
        if index not in self._seeds:
            self._seeds[index] = None  # the page has a mark in its place
            with suppress(*UNREADABLE):
                if index < len(source) and source.paths[index] == line.seed_path:
                    pixels = source.open(index).pixels
                    self._seeds[index] = make_thumbnail(pixels.store(pixels.values), self._side)
        found = self._seeds[index]
        name = relative_name(line.seed_path, self._folder)
        return Picture(found.data if found else "", f"seed image {name}, {line.class_name}")


def _paths_of(root: Path, metadata: Mapping[str, Any]) -> list[str]:
    """The dataset's folder, and the paths of this machine in its metadata."""
    paths = metadata["paths"]
    named = (paths["model"], paths.get("lora"), *(paths["source"] or {}).values())
    return [str(root), str(root.resolve()), *(
        str(find_path(root, path, "source")) for path in named
        if isinstance(path, str) and not path.startswith(UNKNOWN))]


def _open_seed_images(
    root: Path, metadata: Mapping[str, Any], source: Any
) -> tuple[SeedImages | None, list[str]]:
    if source is not None:
        return open_seed_images(source), []
    try:
        found = recorded_images(root, metadata)
    except (OSError, ValueError, ImportError, ExpansionError) as error:
        return None, [f"The seed images could not be opened, and are not shown: {error}"]
    return found, ["The dataset was made from a dataset object: seed images are not shown."] * (
        found is None)


def _compute_metrics(root: Path, metadata: Mapping[str, Any], source: SeedImages | None) -> None:
    from dreamda_aug.metrics import compare_folders

    if metadata.get("image_format") != "folder":
        raise ValueError("metrics need synthetic images in class folders, not in shards.")
    if source is None or source.root is None:
        raise ValueError("metrics need the seed images in class folders, and they were not found "
                         "where the record says; give source, the folder where they are.")
    found = asdict(compare_folders(source.root, root))
    write_atomically(root / METRICS, (json.dumps(found, indent=2) + "\n").encode())


def _read_metrics(root: Path) -> Iterator[tuple[str, str]]:
    path = root / METRICS
    if path.is_file():
        for name, value in read_json(path).items():
            text = " ".join(map(str, value)) if isinstance(value, list) else value
            if text not in (None, ""):
                yield name, f"{text:.4g}" if isinstance(text, float) else str(text)
