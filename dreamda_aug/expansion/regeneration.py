"""What a record names, opened again: seed images, the model, and single synthetic images."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL.Image

from dreamda_aug.arguments import checked
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.batch_maker import generate, pixel_digest
from dreamda_aug.expansion.card import model_file
from dreamda_aug.expansion.engines import cpu_threads
from dreamda_aug.expansion.manifest import (
    ManifestLine,
    read_manifest,
    read_metadata,
    settings_from_json,
)
from dreamda_aug.expansion.seeds import Unreadable, open_seed
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.inputs.seed_images import SeedImages, open_seed_images
from dreamda_aug.models import DiffusionModel, load_model
from dreamda_aug.models.base import pair
from dreamda_aug.models.load import BUNDLED

# Before the name of what lies at a path that is not recorded.
UNKNOWN = "?/"


@dataclass(frozen=True)
class Regenerated:
    """An image that was made again.

    Attributes:
        image: the image, of its seed image's size and mode.
        line: its manifest line.
        equal: whether its pixels are those of the stored one.
    """

    image: PIL.Image.Image
    line: ManifestLine
    equal: bool


@checked
def regenerate(
    out: str | Path,
    sample_id: str,
    *,
    synthesizer: Synthesizer | HasSynthesizer | None = None,
    source: Any = None,
    model: str | Path | None = None,
    lora: str | Path | None = None,
    device: str | None = None,
) -> Regenerated:
    """Make one image of a synthetic dataset again.

    It runs in a batch of the original shape, which the last bits depend on. The same seed image
    fills the other rows, since a row does not depend on the others.

    Args:
        out: the dataset's folder.
        sample_id: the ``id`` or the ``file`` of its manifest line.
        synthesizer: what the dataset was made with, or None to make it from the record.
        source: the seed images, as `open_seed_images` takes them, or None for where the record
            has them.
        model: the model, or None for where the record has it. Not with a synthesizer.
        lora: its LoRA weights, or None for where the record has them.
        device: as in `load_model`.

    Raises:
        ExpansionError: there is no such image; or seed image, model or settings have changed.
        FileNotFoundError: the folder holds no finished dataset, or the seed images are gone.
    """
    metadata = read_metadata(out)
    line = next((each for each in read_manifest(out) if sample_id in (each.id, each.file)), None)
    if line is None:
        raise ExpansionError(f"{out}: the manifest has no image {sample_id!r}.")
    images = recorded_images(out, metadata) if source is None else open_seed_images(source)
    if images is None:
        raise ExpansionError(
            f"{out} was made from a dataset object; pass source, the same dataset.")
    if synthesizer is None:
        synthesizer = Synthesizer(
            load_recorded(out, metadata, model=model, lora=lora, device=device),
            settings_from_json(line.settings), cache=None, compile=metadata["compile"])
    elif model is not None or lora is not None:
        raise ValueError("model, lora: the synthesizer brings its own.")
    sampler = replace(
        as_synthesizer(synthesizer).sampler, cache=None, batch_size=line.batch_size,
        rng_seed=line.rng_seed, static_shapes=metadata["compile"])
    loaded = sampler.model
    if loaded.fingerprint != line.model:
        raise ExpansionError(
            f"{line.id}: expected the model {line.model[:16]}, found "
            f"{loaded.fingerprint[:16]} ({loaded.name}): other weights, another dtype, "
            "or, for a transformer, another block_index or embedded_guidance.")
    if line.seed_path not in images.paths:
        raise ExpansionError(
            f"{line.id}: its seed image {line.seed_path} is not in the source any more.")
    try:
        seed = open_seed(images, images.paths.index(line.seed_path), loaded)
    except Unreadable as error:
        raise ExpansionError(f"{line.id}: seed image {line.seed_path} is {error}.") from error
    if (digest := seed.digests[0]) != line.seed_digest:
        raise ExpansionError(
            f"{line.id}: expected seed image {line.seed_path} with digest "
            f"{line.seed_digest[:16]}, found {digest[:16]}: the image was changed.")
    if metadata["schedule"] != sampler.schedule.digest():
        raise ExpansionError(
            f"{line.id}: the noise levels of {loaded.name} are others than the dataset was made "
            "with: its scheduler was changed. Use the scheduler of before.")
    with cpu_threads(metadata["threads"]):
        count = len(line.layout)
        made = generate(sampler, [seed] * count, line.layout, [line.condition] * count).images.cpu()
    image = seed.store(made[line.row : line.row + 1])
    return Regenerated(image, line, pixel_digest(image) == line.pixels)


def load_recorded(
    out: str | Path, metadata: Mapping[str, Any], *, model: str | Path | None = None,
    lora: str | Path | None = None, device: str | None = None, offline: bool = False,
) -> DiffusionModel:
    """The model that a dataset was made with; arguments are those of `regenerate`.

    Raises:
        ModelError: it cannot be loaded.
        FileNotFoundError: ``offline``, and it is in no folder of this machine, nor cached there.
        ExpansionError: the record does not say where it lies.
    """
    paths = metadata["paths"]
    name = str(model or find_path(out, paths["model"], "model"))
    lora = lora or find_path(out, paths["lora"], "lora")
    if offline and name != BUNDLED:
        index = model_file(name, "model_index.json")
        if index is None or lora is not None and not Path(lora).exists():
            what, where = ("lora", lora) if index else ("model", name)
            raise FileNotFoundError(f"{where} is not on this machine; give {what} (--{what}).")
        name = str(index.parent)
    return load_model(
        name, device=device, lora=lora, low_memory=metadata["low_memory"],
        image_size=pair(metadata["image_size"]), block_index=metadata["block_index"],
        embedded_guidance=metadata["embedded_guidance"])


def paths_from(out: Path | None, images: SeedImages, model: DiffusionModel) -> dict[str, Any]:
    """Where seed images (None for an object) and model lie, as `find_path` reads it.

    Nothing absolute is recorded: a dataset is published, and may move together with them.
    """
    root = out and Path(os.path.abspath(out))

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

    Raises an ExpansionError that names the argument if the path is ``"?/train"``: not recorded.
    """
    if not isinstance(path, str):
        return None
    if path.startswith(UNKNOWN):
        raise ExpansionError(
            f"{out}: the record does not say where the {name} {path.removeprefix(UNKNOWN)!r} "
            f"lies, since it shares no folder with the dataset; give {name} (--{name}).")
    if path.startswith(("./", "../")):
        return os.path.normpath(os.path.join(os.path.abspath(out), path))
    return path


def recorded_images(out: str | Path, metadata: Mapping[str, Any]) -> SeedImages | None:
    """Open the seed images of a dataset, or return None if it was made from an object."""
    source = metadata["paths"]["source"]
    if source is None:
        return None
    return open_seed_images(
        find_path(out, source.get("spec"), "source") or "", split=source.get("split"),
        data_root=find_path(out, source.get("data_root"), "source"))
