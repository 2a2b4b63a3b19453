"""What describes a finished dataset: counts, its card, Hugging Face's metadata, Croissant."""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from dreamda_aug.expansion.manifest import FLAGGED, MANIFEST, flat, read_manifest, read_skipped
from dreamda_aug.expansion.storage import OutputFolder
from dreamda_aug.inputs.samples import SURROGATES
from dreamda_aug.models.load import BUNDLED

EXPORTS = CROISSANT, PARQUET, JSONL = "croissant.json", "metadata.parquet", "metadata.jsonl"
# Columns of ``load_dataset``, beside the image itself.
_COLUMNS = {"label": "int64", "class_name": "string", "synthetic": "bool", "seed_path": "string",
            "replica": "int64", "distance": "float64"}
# What means something to HTML, to CommonMark, or to the extensions that GitHub and the hub read
# (tables, strikethrough, formulas), but for underscores inside of words.
_MARKUP = re.compile(r"[\\`*#\[\]|~$!{}<>&]|(?<![^\W_])_|_(?![^\W_])")
# At the start of a line these open a list, a quotation or a heading.
_OPENING = re.compile(r"\A(\d{0,9})([-+=.)])(?=\s|\Z|[-=])")
# Line breaks, other control characters, and what turns the reading direction.
_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
# Not in the table of settings: it stands elsewhere on the card, or says nothing about the images.
_ELSEWHERE = ("format", "format_version", "samples", "conditions", "source", "license", "paths",
              "repeats")
# Names that a warning lists.
_SHOWN = 10
_NOT_STATED = "not stated where the model lies on this machine; look it up before publishing"


@dataclass
class Stats:
    """Counts of a finished dataset.

    Attributes:
        images: synthetic images by class name.
        flags: images in the dataset by filter's name.
        filtered: images that were made and not kept.
        dropped: how often each filter objected to one of these, by filter's name.
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
    filtered: int = 0

    @property
    def made(self) -> int:
        """Images in the dataset."""
        return sum(self.images.values())

    @property
    def left_out(self) -> int:
        """Planned images that are not in the dataset."""
        return self.filtered + self.unreadable.total()

    def warnings(self, classes: Iterable[str] = ()) -> list[str]:
        """What a user should look into, as sentences.

        Args:
            classes: the dataset's, to name those without images.
        """
        every = self.made + self.filtered
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
            stats.filtered += 1
            stats.dropped.update(each.skipped.removeprefix(FLAGGED).split(", "))
        else:
            stats.unreadable[each.skipped] += 1
    return stats


def dataset_card(metadata: Mapping[str, Any], stats: Stats) -> str:
    """The card: YAML, and Markdown in which names and texts from outside are never markup."""
    import yaml

    classes, model = metadata["source"]["classes"], metadata["paths"]["model"]
    fields = yaml.safe_dump(hub_fields(metadata), sort_keys=False, allow_unicode=True,
                            width=float("inf"))
    return f"---\n{fields}---\n\n" + _template().render(
        metadata=metadata, stats=stats,
        model=model.rpartition("/")[2] if model.startswith(("./", "../")) else model,
        warnings=[*metadata["source"]["problems"], *stats.warnings(classes)],
        conditions={name: value for name, value in metadata["conditions"].items()
                    if isinstance(value, str) and name in classes},
        settings=flat({name: value for name, value in metadata.items() if name not in _ELSEWHERE}))


def license_of(model: str) -> str:
    """The licence that a model's card states, in its folder or the hub's cache; asks no network."""
    if model == BUNDLED:
        return "Apache-2.0, trained on Fashion-MNIST (MIT licence)"
    stated: Any = {}
    if card := model_file(model, "README.md"):
        # imported here: a second that the bundled model needs not
        import yaml
        from huggingface_hub import ModelCard

        with suppress(ValueError, TypeError, yaml.YAMLError):  # its front matter is none
            stated = ModelCard(card.read_text("utf-8-sig", errors="replace"),
                               ignore_metadata_errors=True).data
    name = stated.get("license_name") or stated.get("license") or _NOT_STATED
    text = ", ".join(map(str, name)) if isinstance(name, list) else str(name)
    link = stated.get("license_link")
    return f"{text} ({link})" if link else text


def model_file(model: str, name: str) -> Path | None:
    """A file of a model, in its folder or in the hub's cache; asks no network."""
    path = Path(model) / name
    if path.is_file():
        return path
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, name)
    except HFValidationError:
        return None  # a path or a pipeline's class, no hub id
    return Path(cached) if isinstance(cached, str) else None


def escape_markdown(text: object) -> Markup:
    """The text as one line that Markdown, and HTML after it, show character for character."""
    line = SURROGATES.sub("\ufffd", _BREAKS.sub(" ", str(text))).strip()
    line = _MARKUP.sub(lambda found: f"&#{ord(found[0])};", line)
    return Markup(_OPENING.sub(lambda found: f"{found[1]}&#{ord(found[2])};", line))


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("dreamda_aug.expansion"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, finalize=escape_markdown)
    return environment.get_template("README.md.jinja")


def write_exports(folder: OutputFolder, metadata: Mapping[str, Any]) -> None:
    """Write what is missing of these files for a finished dataset; the same bytes at any time.

    ``metadata.parquet`` and ``metadata.jsonl`` are for class folders alone: shards carry their
    labels themselves. Only the first can name classes; without pyarrow it is the second. Hugging
    Face refuses both together.
    """
    if metadata["image_format"] == "folder" and not (
            folder.exists(PARQUET) or folder.exists(JSONL)):
        try:
            folder.write(PARQUET, [_parquet(_rows(folder), list(metadata["source"]["classes"]))])
        except ImportError:
            folder.write(JSONL, (json.dumps(row, separators=(",", ":")).encode() + b"\n"
                                 for row in _rows(folder)))
    if not folder.exists(CROISSANT):
        text = json.dumps(croissant(folder, metadata), indent=2, ensure_ascii=False) + "\n"
        folder.write(CROISSANT, [text.encode()])


def hub_fields(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The YAML of a card that ``load_dataset`` reads: files, columns and names of the classes."""
    in_folders = metadata["image_format"] == "folder"
    # said outright: a class folder called "test" would be taken for a split
    config: dict[str, Any] = {"config_name": "default", "data_files": [{
        "split": "train", "path": ["*/*.png", "metadata.*"] if in_folders else "shard-*.tar"}]}
    if in_folders:
        names = {str(label): name for label, name in enumerate(metadata["source"]["classes"])}
        kinds = {"image": "image", **_COLUMNS, "label": {"class_label": {"names": names}}}
        config["features"] = [{"name": name, "dtype": kind} for name, kind in kinds.items()]
    fields = {"tags": ["synthetic"], "task_categories": ["image-classification"],
              "configs": [config]}
    if metadata["license"].lower().startswith("apache-2.0"):
        fields["license"] = "apache-2.0"
    return fields


def _rows(folder: OutputFolder) -> Iterator[dict[str, Any]]:
    for line in read_manifest(folder):
        yield {"file_name": line.file, "label": line.label, "class_name": line.class_name,
               "synthetic": True, "seed_path": line.seed_path, "replica": line.replica,
               "distance": float(line.distance)}


def _parquet(rows: Iterator[dict[str, Any]], classes: list[str]) -> bytes:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    features = {"label": {"names": classes, "_type": "ClassLabel"}}
    schema = pyarrow.schema(
        [(name, pyarrow.type_for_alias(kind))
         for name, kind in {"file_name": "string", **_COLUMNS}.items()],
        metadata={"huggingface": json.dumps({"info": {"features": features}})})
    buffer = io.BytesIO()
    with ParquetWriter(buffer, schema) as writer:
        while some := list(islice(rows, 10_000)):
            writer.write_table(pyarrow.Table.from_pylist(some, schema))
    return buffer.getvalue()


def croissant(folder: OutputFolder, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The dataset as Croissant 1.0 describes one: its files, and a record for each image."""
    classes = list(metadata["source"]["classes"])
    shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    template = files("dreamda_aug.expansion") / "templates" / CROISSANT
    found: dict[str, Any] = json.loads(template.read_text("utf-8"))
    manifest, in_folders, in_shards = found["distribution"]
    manifest["sha256"] = folder.digest(MANIFEST)
    images = in_folders if metadata["image_format"] == "folder" else in_shards
    return found | {
        "distribution": [manifest, images],
        "license": metadata["license"],
        "description": (
            f"Synthetic images of {len(classes)} classes ({shown}), made from "
            f"{metadata['source']['images']} real images with dreamda_aug. They carry the label of "
            "the image that they were made from."),
    }


def _first_of(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
