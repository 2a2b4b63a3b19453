"""What other programs read beside the images: Hugging Face's metadata and YAML, and Croissant."""

import io
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from itertools import islice
from typing import Any

from dreamda_aug.expansion.manifest import MANIFEST, read_manifest
from dreamda_aug.expansion.metadata import LICENSE
from dreamda_aug.expansion.storage import OutputFolder

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
