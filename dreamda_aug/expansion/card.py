"""What describes a dataset to people and programs: its card, Hugging Face's metadata, Croissant."""

import io
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from dreamda_aug.expansion.manifest import MANIFEST, read_manifest
from dreamda_aug.expansion.metadata import LICENSE, PATHS, flat
from dreamda_aug.expansion.stats import Stats
from dreamda_aug.expansion.storage import OutputFolder
from dreamda_aug.method.settings import DIALS
from dreamda_aug.models.load import BUNDLED

CROISSANT, PARQUET, JSONL = "croissant.json", "metadata.parquet", "metadata.jsonl"
# Columns of ``load_dataset``, beside the image itself.
_COLUMNS = {"label": "int64", "class_name": "string", "synthetic": "bool", "seed_path": "string",
            "replica": "int64", "distance": "float64"}
# What images are, by format of the dataset.
_IMAGES = {
    "folder": {"description": "PNG files in a folder for each class.",
               "encodingFormat": "image/png", "includes": "*/*.png"},
    "webdataset": {"description": "Tar files of ID.png, ID.cls and ID.json.",
                   "encodingFormat": "application/x-tar", "includes": "shard-*.tar"},
}
# What means something to HTML, to CommonMark, or to the extensions that GitHub and the hub read
# (tables, strikethrough, formulas), but for underscores inside of words.
_MARKUP = re.compile(r"[\\`*#\[\]|~$!{}<>&]|(?<![^\W_])_|_(?![^\W_])")
# At the start of a line these open a list, a quotation or a heading.
_OPENING = re.compile(r"\A(\d{0,9})([-+=.)])(?=\s|\Z|[-=])")
# Line breaks, other control characters, and what turns the reading direction.
_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
# These stand for bytes of a file name that are no text.
_SURROGATES = re.compile("[\ud800-\udfff]")
# Not in the table of settings: it stands elsewhere on the card, or says nothing about the images.
_ELSEWHERE = ("format", "format_version", "samples", "calibration", "conditions", "source", LICENSE,
              PATHS, "repeats")
_NOT_STATED = "not stated where the model lies on this machine; look it up before publishing"


def dataset_card(metadata: Mapping[str, Any], stats: Stats) -> str:
    """The card: YAML, and Markdown in which names and texts from outside are never markup."""
    import yaml

    source, model = metadata["source"], metadata[PATHS]["model"]
    fields = yaml.safe_dump(hub_fields(metadata), sort_keys=False, allow_unicode=True,
                            width=float("inf"))
    return f"---\n{fields}---\n\n" + _template().render(
        made=stats.made, seed_images=source["images"], license=metadata[LICENSE],
        model=model.rpartition("/")[2] if model.startswith(("./", "../")) else model,
        classes=[(name, count, stats.images[name]) for name, count in source["classes"].items()],
        flagged=[(title, sorted(counts.items())) for title, counts in (
            ("Flagged and kept", stats.flags), ("Flagged and left out", stats.dropped),
            ("Not made", stats.unreadable))],
        calibration=_calibration(metadata.get("calibration")),
        warnings=[*source["problems"], *stats.warnings(source["classes"])],
        conditions=[(name, value) for name, value in metadata["conditions"].items()
                    if isinstance(value, str) and name in source["classes"]],
        settings=flat({name: value for name, value in metadata.items() if name not in _ELSEWHERE}),
    )


def license_of(model: str) -> str:
    """The licence that a model's card states, in its folder or the hub's cache; asks no network."""
    if model == BUNDLED:
        return "Apache-2.0, trained on Fashion-MNIST (MIT licence)"
    card = model_file(model, "README.md")
    if card is None:
        return _NOT_STATED
    # imported here: a second that the bundled model needs not
    import yaml
    from huggingface_hub import ModelCard

    try:
        stated = ModelCard(card.read_text("utf-8-sig", errors="replace"),
                           ignore_metadata_errors=True).data
    except (ValueError, TypeError, yaml.YAMLError):
        return _NOT_STATED  # its front matter is none
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


def _calibration(found: Mapping[str, Any] | None) -> str:
    """Which dials were chosen by measurement, and why; empty if none were."""
    if found is None:
        return ""
    dials = ", ".join(f"{name} {found[name]:g}" for name in DIALS if found[name] is not None)
    judge = f", judged by {found['judge']}" if found["judge"] else ""
    missed = "" if found["met"] else ", which nothing kept: the closest was taken"
    return f"{dials}: the furthest that images go with {found['target']}{missed}{judge}"


def escape_markdown(text: object) -> Markup:
    """The text as one line that Markdown, and HTML after it, show character for character."""
    line = _SURROGATES.sub("\ufffd", _BREAKS.sub(" ", str(text))).strip()
    line = _MARKUP.sub(lambda found: f"&#{ord(found[0])};", line)
    return Markup(_OPENING.sub(lambda found: f"{found[1]}&#{ord(found[2])};", line))


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("dreamda_aug.expansion"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, finalize=escape_markdown)
    return environment.get_template("README.md.jinja")


def are_exported(folder: OutputFolder, metadata: Mapping[str, Any]) -> bool:
    """Whether a dataset has the files for other programs."""
    return folder.exists(CROISSANT) and (
        metadata["image_format"] != "folder" or folder.exists(PARQUET) or folder.exists(JSONL))


def write_exports(folder: OutputFolder, metadata: Mapping[str, Any]) -> None:
    """Write these files for a finished dataset; the same bytes whenever it is done.

    ``metadata.parquet`` and ``metadata.jsonl`` are for class folders alone: shards carry their
    labels themselves. Only the first can name classes; without pyarrow it is the second.
    """
    if metadata["image_format"] == "folder":
        try:
            folder.write(PARQUET, [_parquet(_rows(folder), list(metadata["source"]["classes"]))])
            folder.remove(JSONL)  # Hugging Face refuses both
        except ImportError:
            folder.write(JSONL, (json.dumps(row, separators=(",", ":")).encode() + b"\n"
                                 for row in _rows(folder)))
            folder.remove(PARQUET)
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
    if metadata[LICENSE].lower().startswith("apache-2.0"):
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
    manifest, images = found["distribution"]
    manifest["sha256"] = folder.digest(MANIFEST)
    images |= _IMAGES[metadata["image_format"]]
    return found | {
        "license": metadata[LICENSE],
        "description": (
            f"Synthetic images of {len(classes)} classes ({shown}), made from "
            f"{metadata['source']['images']} real images with dreamda_aug. They carry the label of "
            "the image that they were made from."),
    }
