"""One HTML page on a synthetic dataset: pictures, distributions, settings, warnings."""

import base64
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import PIL.Image

from dreamda_aug.expansion.card import Tally, tally_of
from dreamda_aug.expansion.layouts import StoredImages
from dreamda_aug.expansion.manifest import (
    MANIFEST,
    ExpansionError,
    ManifestLine,
    parse_json,
    read_manifest,
    write_atomically,
)
from dreamda_aug.expansion.report_page import Histogram, Picture, Row, render
from dreamda_aug.expansion.seed_images import UNREADABLE
from dreamda_aug.expansion.sources import Source, open_source
from dreamda_aug.expansion.store import WHERE, read_plan

METRICS = "metrics.json"
# Pictures on a page, and their longer side: about 10 MB at most.
_MAX_PICTURES = 600
_MAX_SIDE = 256
_MAX_REPLICAS = 8
_BINS = 24


@dataclass
class _Gathered:
    """What one pass over the manifest keeps."""

    rows: dict[str, dict[int, list[ManifestLine]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    distances: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    flags: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))


def write_report(
    root: str | Path,
    out: str | Path | None = None,
    *,
    source: str | Path | Source | None = None,
    metrics: bool = False,
) -> Path:
    """Write the report of a finished dataset.

    The page holds everything that it shows, at most 600 pictures of 256 pixels; it asks nothing
    of a network.

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
        ValueError: ``metrics`` for a dataset that is not in folders.
    """
    root = Path(root)
    facts = read_plan(root)
    tally = tally_of(root)
    found = tally.made + sum((tally.dropped + tally.unreadable).values())
    if tally.made == 0 and found < facts["samples"]:
        raise ExpansionError(
            f"{root / MANIFEST}: expected the lines of {facts['samples']} images, found none."
        )
    seed_images, notes = _open_seed_images(facts, source)
    if metrics:
        _compute_metrics(root, facts, seed_images)
    gathered = _gather(root, len(tally.images))
    pictures = [line for rows in gathered.rows.values() for lines in rows.values()
                for line in lines]
    images = StoredImages(root, (line.file for line in pictures))
    rows = [
        _row(class_name, index, lines, images, seed_images)
        for class_name, of_class in sorted(gathered.rows.items())
        for index, lines in sorted(of_class.items())
    ]
    page = render(
        title=f"Synthetic images: {root.resolve().name}",
        total=tally.made,
        warnings=_problems(facts) + tally.warnings() + notes,
        rows=rows,
        histograms=_histograms(gathered),
        class_table=_class_table(facts, tally, gathered),
        metrics=_read_metrics(root),
        settings=_settings(facts),
    )
    out = root / "report.html" if out is None else Path(out)
    write_atomically(out, page.encode())
    return out


def _open_seed_images(facts: dict, source) -> tuple[Source | None, list[str]]:
    if source is None:
        where = facts[WHERE].get("source")
        if not isinstance(where, dict):
            return None, ["The dataset was made from a dataset object: seed images are not shown."]
        source = where.get("spec")
        options = {name: where.get(name) for name in ("split", "data_root")}
        try:
            return open_source(source, **options), []
        except (OSError, ValueError, ImportError, ExpansionError) as error:
            return None, [f"The seed images could not be opened, and are not shown: {error}"]
    return (source if hasattr(source, "digest") else open_source(source)), []


def _gather(root: Path, classes: int) -> _Gathered:
    """Everything that is counted, and the first rows of each class; flagged images come too."""
    gathered = _Gathered()
    share = max(_MAX_PICTURES // max(classes, 1), 2)
    ordinary: Counter = Counter()
    flagged: Counter = Counter()
    for line in read_manifest(root):
        name = line.class_name
        gathered.values["distance"].append(line.distance)
        for score, value in line.scores.items():
            gathered.values[score].append(value)
        gathered.distances[name].append(line.distance)
        gathered.flags[name].update(line.flags)
        row = gathered.rows[name].get(line.seed_index, [])
        counted = flagged if line.flags or line.events else ordinary
        if counted[name] + (not row) < share // 2 and len(row) < _MAX_REPLICAS:
            counted[name] += 1 + (not row)
            gathered.rows[name][line.seed_index].append(line)
    return gathered


def _row(
    class_name: str, index: int, lines: list[ManifestLine], images: StoredImages,
    seed_images: Source | None,
) -> Row:
    shown = [_seed_picture(lines[0], seed_images)] if seed_images is not None else []
    for line in lines:
        notes = [*line.flags, *(f"guard: {event}" for event in line.events)]
        scores = "".join(f", {name} {value:.3g}" for name, value in line.scores.items())
        shown.append(Picture(
            data=_data_uri(images.open(line.file)),
            name=str(line.replica),
            caption=f"replica {line.replica} of {line.seed_path}, {class_name}, "
                    f"distance {line.distance:.3f}{scores}",
            flags=tuple(notes),
            synthetic=True,
        ))
    return Row(class_name, tuple(shown))


def _seed_picture(line: ManifestLine, source: Source) -> Picture:
    data = ""
    if line.seed_index < len(source.paths) and source.paths[line.seed_index] == line.seed_path:
        try:
            data = _data_uri(source.open(line.seed_index))
        except UNREADABLE:
            pass  # the page says that it is not at hand
    return Picture(data, "seed", f"seed image {line.seed_path}, {line.class_name}", (), False)


def _data_uri(image: PIL.Image.Image) -> str:
    """The image, at most 256 pixels wide and high, as a data URI."""
    if image.mode.startswith(("I", "F")):
        low, high = image.getextrema()
        image = image.convert("F").point(lambda v: v * (255 / max(high - low, 1))
                                         - low * 255 / max(high - low, 1))
    image = image.convert("L" if image.mode in ("1", "L", "LA", "F") else "RGB")
    small = max(image.size) <= 64
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    buffer = io.BytesIO()
    # pixel for pixel where single pixels are seen
    image.save(buffer, "PNG" if small else "JPEG", quality=85)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _histograms(gathered: _Gathered) -> list[Histogram]:
    meanings = {
        "distance": "Distance from the seed image (root mean square over pixels)",
        "label": "Probability of the seed image's class, by the given classifier",
        "copy": "Distance to the nearest other training image (1: as real neighbours)",
        "seed-copy": "Distance from the seed image, as the filter saw it",
    }
    return [_histogram(meanings.get(name, name), values)
            for name, values in gathered.values.items() if values and name != "seed-copy"]


def _histogram(title: str, values: Iterable[float]) -> Histogram:
    values = sorted(values)
    low, high = values[0], values[-1]
    width = (high - low) / _BINS or 1.0
    counts = [0] * _BINS
    for value in values:
        counts[min(int((value - low) / width), _BINS - 1)] += 1
    return Histogram(title, low, high, tuple(counts), values[len(values) // 2],
                     sum(values) / len(values))


def _class_table(facts: dict, tally: Tally, gathered: _Gathered) -> list[tuple]:
    """Header and rows: class, seed images, images, mean distance, kept labels, other flags."""
    names = [each["name"] for each in facts["filters"]]
    rows = [("class", "seed images", "synthetic", "mean distance", *names)]
    for name, count in facts["source"]["classes"].items():
        distances = gathered.distances[name]
        mean = f"{sum(distances) / len(distances):.3f}" if distances else "–"
        made = tally.images[name]
        rows.append((name, count, made, mean, *(
            f"{gathered.flags[name][flag]} flagged" for flag in names)))
    return rows


def _compute_metrics(root: Path, facts: dict, source: Source | None) -> None:
    from dreamda_aug.metrics import compare_folders

    if facts.get("image_format") != "folder" or not hasattr(source, "root"):
        raise ValueError("metrics need seed images and synthetic images in class folders.")
    found = asdict(compare_folders(source.root, root))
    write_atomically(root / METRICS, (json.dumps(found, indent=2) + "\n").encode())


def _read_metrics(root: Path) -> list[tuple[str, str]]:
    path = root / METRICS
    if not path.is_file():
        return []
    found = parse_json(path.read_bytes(), str(path))
    return [(name, f"{value:.4g}" if isinstance(value, float) else str(value))
            for name, value in found.items() if value is not None]


def _problems(facts: dict) -> list[str]:
    return [str(problem) for problem in facts["source"].get("problems", [])]


def _settings(facts: dict) -> list[tuple[str, str]]:
    """Everything that the dataset was begun with, flat."""
    def flat(value, name: str = ""):
        if isinstance(value, dict):
            for key, item in value.items():
                yield from flat(item, f"{name}.{key}" if name else key)
        else:
            yield name, str(value)

    shown = {name: value for name, value in facts.items() if name not in ("conditions", "source")}
    return list(flat(shown))
