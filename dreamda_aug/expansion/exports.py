"""What other programs read beside the images: Hugging Face's ``metadata.jsonl``, and Croissant."""

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

from dreamda_aug.expansion.manifest import MANIFEST, ManifestLine
from dreamda_aug.expansion.metadata import LICENSE
from dreamda_aug.expansion.storage import OutputFolder
from dreamda_aug.files import read_numbered

METADATA, CROISSANT = "metadata.jsonl", "croissant.json"
# What images are, by format of the dataset.
_IMAGES = {
    "folder": {"description": "PNG files in a folder for each class.",
               "encodingFormat": "image/png", "includes": "*/*.png"},
    "webdataset": {"description": "Tar files of ID.png, ID.cls and ID.json.",
                   "encodingFormat": "application/x-tar", "includes": "shard-*.tar"},
}


def exports_of(metadata: Mapping[str, Any]) -> list[str]:
    """Names of the files that a dataset has for other programs.

    ``metadata.jsonl`` is for class folders alone: shards carry their labels themselves.
    """
    return [METADATA, CROISSANT] if metadata["image_format"] == "folder" else [CROISSANT]


def write_exports(folder: OutputFolder, metadata: Mapping[str, Any]) -> None:
    """Write these files for a finished dataset; the same bytes whenever it is done."""
    if METADATA in exports_of(metadata):
        folder.write(METADATA, metadata_lines(folder))
    text = json.dumps(croissant(folder, metadata), indent=2, ensure_ascii=False) + "\n"
    folder.write(CROISSANT, [text.encode()])


def metadata_lines(folder: OutputFolder) -> Iterator[bytes]:
    """Lines that ``datasets.load_dataset("imagefolder", data_dir=...)`` reads beside the images."""
    with folder.open(MANIFEST) as file:
        for where, text in read_numbered(file, f"{folder}/{MANIFEST}"):
            line = ManifestLine.from_json(text, where)
            columns = {"file_name": line.file, "label": line.label, "class_name": line.class_name,
                       "synthetic": True, "seed_path": line.seed_path, "replica": line.replica,
                       "distance": float(line.distance)}
            yield json.dumps(columns, separators=(",", ":")).encode() + b"\n"


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
