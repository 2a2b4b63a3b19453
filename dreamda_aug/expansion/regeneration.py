"""One synthetic image again, from its manifest line."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL.Image

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.batch_maker import generate, pixel_digest
from dreamda_aug.expansion.card import model_file
from dreamda_aug.expansion.engines import cpu_threads
from dreamda_aug.expansion.manifest import ManifestLine, read_manifest, settings_from_json
from dreamda_aug.expansion.metadata import PATHS, find_path, read_metadata, recorded_images
from dreamda_aug.expansion.seeds import Unreadable, open_seed
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.inputs.seed_images import SeedImages, open_seed_images
from dreamda_aug.models import DiffusionModel, load_model
from dreamda_aug.models.base import pair
from dreamda_aug.models.load import BUNDLED


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
            f"{out} was made from a dataset object; pass source, the same dataset."
        )
    if synthesizer is None:
        loaded = load_recorded(out, metadata, model=model, lora=lora, device=device)
        settings = settings_from_json(line.settings)
    elif model is not None or lora is not None:
        raise ValueError("model, lora: the synthesizer brings its own.")
    else:
        synthesizer = as_synthesizer(synthesizer)
        loaded, settings = synthesizer.model, synthesizer.settings
    if loaded.fingerprint != line.model:
        raise ExpansionError(
            f"{line.id}: expected the model {line.model[:16]}, found "
            f"{loaded.fingerprint[:16]} ({loaded.name}): other weights, another dtype, "
            "or, for a transformer, another block_index or embedded_guidance."
        )
    try:
        seed = open_seed(images, _find_seed_image(images, line), loaded)
    except Unreadable as error:
        raise ExpansionError(f"{line.id}: seed image {line.seed_path} is {error}.") from error
    if seed.digest != line.seed_digest:
        raise ExpansionError(
            f"{line.id}: expected seed image {line.seed_path} with digest "
            f"{line.seed_digest[:16]}, found {seed.digest[:16]}: the image was changed."
        )
    compiled = metadata["compile"]
    again = Synthesizer(
        loaded, settings, batch_size=line.batch_size, rng_seed=line.rng_seed, cache=None,
        compile=compiled and (synthesizer is None or not synthesizer.sampler.static_shapes))
    sampler = replace(again.sampler, static_shapes=compiled)
    if metadata["schedule"] != sampler.schedule.digest():
        raise ExpansionError(
            f"{line.id}: the noise levels of {loaded.name} are others than the dataset was made "
            "with: its scheduler was changed. Use the scheduler of before."
        )
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
    paths = metadata[PATHS]
    name = str(model or find_path(out, paths["model"], "model"))
    lora = lora or find_path(out, paths["lora"], "lora")
    if offline and name != BUNDLED:
        index = model_file(name, "model_index.json")
        if index is None or lora is not None and not Path(lora).exists():
            raise FileNotFoundError(f"{lora if index else name} is not on this machine.")
        name = str(index.parent)
    return load_model(
        name, device=device, lora=lora, low_memory=metadata["low_memory"],
        image_size=pair(metadata["image_size"]), block_index=metadata["block_index"],
        embedded_guidance=metadata["embedded_guidance"])


def _find_seed_image(images: SeedImages, line: ManifestLine) -> int:
    """Where the seed image is in a source, which may be listed in another order now."""
    for index in (line.seed_index, *range(len(images))):
        if index < len(images) and images.paths[index] == line.seed_path:
            return index
    raise ExpansionError(
        f"{line.id}: its seed image {line.seed_path} is not in the source any more."
    )
