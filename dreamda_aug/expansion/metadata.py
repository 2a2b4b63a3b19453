"""What a dataset was begun with, and where its seed images and model lie: ``plan.json``."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.manifest import local_dataset
from dreamda_aug.expansion.storage import OutputFolder
from dreamda_aug.files import parse_json
from dreamda_aug.inputs.seed_images import SeedImages, open_seed_images
from dreamda_aug.models import DiffusionModel
from dreamda_aug.models.load import BUNDLED

FORMAT, FORMAT_VERSION = "dreamda-expansion", 2
PLAN, CARD = "plan.json", "README.md"
# What may differ from one machine to the next: it says nothing about the images.
PATHS, LICENSE = "paths", "license"
# Before the name of what lies at a path that is not recorded.
UNKNOWN = "?/"


def read_metadata(out: str | Path | OutputFolder) -> dict[str, Any]:
    """Read what a dataset was begun with.

    Raises:
        FileNotFoundError: the folder holds no expansion.
        ExpansionError: the file is damaged, or of another version.
        ValueError: it is the text of a URL.
    """
    folder = local_dataset(out)
    where = f"{folder}/{PLAN}"
    if not folder.exists(PLAN):
        raise FileNotFoundError(f"{where}: expected an expanded dataset, found none.")
    found = parse_json(folder.read(PLAN), where)
    if found.get("format") != FORMAT:
        raise ExpansionError(f"{where}: expected the metadata of an expansion, found other JSON.")
    if found.get("format_version") != FORMAT_VERSION:
        raise ExpansionError(
            f"{where}: expected format version {FORMAT_VERSION}, found "
            f"{found.get('format_version')!r}: the dataset was made by another version of "
            "dreamda_aug. Make it anew with --new (new=True)."
        )
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the metadata of two plans, as ``settings.steps: 50 -> 100``."""
    old, new = dict(flat(before)), dict(flat(now))
    return [f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
            for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)
            and name.partition(".")[0] not in (PATHS, LICENSE)]


def flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Everything in a nested dict but None, by the names of its keys, joined by dots."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else key)
    elif value is not None:
        yield name, value


def check_out(images: SeedImages, folder: OutputFolder) -> None:
    """Refuse to write into the current folder, between the seed images, or over other files."""
    if folder.path is not None:
        if str(folder.path) == "." and not folder.exists(PLAN):
            raise ValueError("out must name a folder of its own, got the current one.")
        if images.is_folder and images.root is not None:
            out, inside = folder.path.resolve(), images.root.resolve()
            if out.is_relative_to(inside):
                raise ValueError(
                    f"out must lie outside the seed images' folder {inside}, got {out}: the "
                    "next run would take synthetic images for seed images."
                )
    folder.check()
    names = folder.names()
    if names and PLAN not in names:
        raise ExpansionError(
            f"{folder}: expected an empty folder or an expansion to resume, found {len(names)} "
            f"other files ({', '.join(names[:3])}); choose another one."
        )


def paths_from(folder: OutputFolder, images: SeedImages, model: DiffusionModel) -> dict[str, Any]:
    """Where seed images (None for an object) and model lie, as `find_path` reads it.

    Nothing absolute is recorded: a dataset is published, and may move together with them.
    """
    root = folder.path and Path(os.path.abspath(folder.path))

    def seen(path: str | None) -> str | None:
        if path is None or path == BUNDLED or not os.path.lexists(path):
            return path  # a name, such as a hub id
        there = Path(os.path.abspath(path))
        # the path from the top of the disk would name everything on the way
        if root is None or there.parts[:2] != root.parts[:2]:
            return UNKNOWN + there.name
        relative = Path(os.path.relpath(there, root)).as_posix()
        return relative if relative.startswith("..") else f"./{relative}"

    spec = images.spec
    return {"source": None if spec is None else {
        **spec, "spec": seen(spec.get("spec")), "data_root": seen(spec.get("data_root"))},
        "model": seen(model.name), "lora": seen(model.lora)}


def find_path(out: str | Path, path: Any, name: str) -> str | None:
    """A recorded path, as seen from here: ``../train`` is relative to the dataset's folder.

    ExpansionError asks for the argument ``name`` if the path is ``"?/train"``, so not recorded.
    """
    if not isinstance(path, str):
        return None
    if path.startswith(UNKNOWN):
        raise ExpansionError(
            f"{out}: the record does not say where the {name} {path.removeprefix(UNKNOWN)!r} "
            f"lies, since it shares no folder with the dataset; give {name} (--{name})."
        )
    if path.startswith(("./", "../")):
        return os.path.normpath(os.path.join(os.path.abspath(out), path))
    return path


def recorded_images(out: str | Path, metadata: Mapping[str, Any]) -> SeedImages | None:
    """Open the seed images of a dataset, or return None if it was made from an object."""
    source = metadata[PATHS]["source"]
    if source is None:
        return None
    return open_seed_images(
        find_path(out, source.get("spec"), "source") or "", split=source.get("split"),
        data_root=find_path(out, source.get("data_root"), "source"))
