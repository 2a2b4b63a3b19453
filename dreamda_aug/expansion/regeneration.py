"""One synthetic image again, from its manifest line."""

from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.manifest import ManifestLine, read_manifest, settings_from_json
from dreamda_aug.expansion.metadata import read_metadata, recorded_model, recorded_source
from dreamda_aug.expansion.seed_images import Unreadable, pixel_digest, read_seed_image
from dreamda_aug.expansion.sharding import cpu_threads
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.generation.tensors import Request, TensorSynthesizer
from dreamda_aug.inputs.sources import Source, lies_at, open_source
from dreamda_aug.models import load_model
from dreamda_aug.models.denoiser import pair


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
    root: str | Path,
    sample_id: str,
    *,
    synthesizer: Synthesizer | HasSynthesizer | None = None,
    source: str | Path | Source | None = None,
    model: str | Path | None = None,
    lora: str | Path | None = None,
    device: str | None = None,
) -> Regenerated:
    """Make one image of a synthetic dataset again.

    It runs in a batch of the same shape as at first, since the last bits depend on the shape. The
    other rows are filled with the same seed image, since a row does not depend on the others.

    Args:
        root: the dataset's folder.
        sample_id: the ``id`` or the ``file`` of its manifest line.
        synthesizer: what the dataset was made with; None: made from the record.
        source: the seed images, where they have moved; None: where the record says.
        model: the model, where it has moved; None: as the record says. Not with a synthesizer.
        lora: its LoRA weights, where they have moved; None: as the record says.
        device: as in `load_model`.

    Raises:
        ExpansionError: there is no such image; or seed image, model or settings have changed.
        FileNotFoundError: the folder holds no finished dataset, or the seed images are gone.
    """
    facts = read_metadata(root)
    line = find_line(root, sample_id)
    if source is None:
        recorded = recorded_source(root, facts)
        if recorded is None:
            raise ExpansionError(
                f"{root} was made from a dataset object; pass source, the same dataset."
            )
        source = open_source(recorded["spec"] or "", split=recorded["split"],
                             data_root=recorded["data_root"])
    source = source if isinstance(source, Source) else open_source(source)
    if synthesizer is None:
        given = {name: str(place) for name, place in (("model", model), ("lora", lora))
                 if place is not None}
        source_of_model, lora_of_model = recorded_model(root, facts, given)
        size = facts.get("image_size")
        loaded = load_model(source_of_model, device=device, lora=lora_of_model,
                              low_memory=bool(facts.get("low_memory")),
                              image_size=size and pair(size),
                              block_index=facts.get("block_index"),
                              embedded_guidance=facts.get("embedded_guidance"))
        settings = settings_from_json(line.settings)
    else:
        if model is not None or lora is not None:
            raise ValueError("model, lora: the synthesizer brings its own.")
        synthesizer = as_synthesizer(synthesizer)
        loaded, settings = synthesizer.model, synthesizer.settings
    if loaded.fingerprint != line.model:
        raise ExpansionError(
            f"{line.id}: expected the model {line.model[:16]}, found "
            f"{loaded.fingerprint[:16]} ({loaded.name}): other weights, another dtype, "
            "or, for a transformer, another block_index or embedded_guidance."
        )
    index = _find_seed_image(source, line)
    try:
        seed_image = read_seed_image(source, index, loaded)
    except Unreadable as error:
        raise ExpansionError(f"{line.id}: seed image {line.seed_path} is {error}.") from error
    if seed_image.digest != line.seed_digest:
        raise ExpansionError(
            f"{line.id}: expected seed image {line.seed_path} with digest "
            f"{line.seed_digest[:16]}, found {seed_image.digest[:16]}: the image was changed."
        )
    requests = [Request(row, line.condition, first + k)
                for row, (first, count) in enumerate(line.layout) for k in range(count)]
    if requests[line.row].replica != line.replica:
        raise ExpansionError(
            f"{line.id}: expected replica {line.replica} in row {line.row} of its batch, found "
            f"{requests[line.row].replica}: the manifest line is damaged."
        )
    compiled = bool(facts.get("compile"))
    core = TensorSynthesizer(
        loaded, settings, batch_size=facts["batch_size"] if compiled else len(requests),
        rng_seed=line.rng_seed,
        compile=compiled and (synthesizer is None or not synthesizer.core.static_shapes))
    core.static_shapes = compiled
    if facts.get("schedule") not in (None, core.schedule.digest()):
        raise ExpansionError(
            f"{line.id}: the noise levels of {loaded.name} are others than the dataset was made "
            "with: its scheduler was changed. Use the scheduler of before."
        )
    with cpu_threads(facts.get("threads")):
        made = core.synthesize(
            seed_image.values.expand(len(line.layout), -1, -1, -1), requests,
            [line.seed_digest] * len(line.layout),
        ).images.cpu()
    image = seed_image.back(made[line.row : line.row + 1])
    return Regenerated(image, line, pixel_digest(image) == line.pixels)


def find_line(root: str | Path, sample_id: str) -> ManifestLine:
    """The manifest line of an image, by its ``id`` or its ``file``.

    Raises:
        ExpansionError: there is none.
    """
    for line in read_manifest(root):
        if sample_id in (line.id, line.file):
            return line
    raise ExpansionError(f"{root}: the manifest has no image {sample_id!r}.")


def _find_seed_image(source: Source, line: ManifestLine) -> int:
    """Where the seed image is in a source, which may be listed in another order now."""
    index = line.seed_index
    if index < len(source.paths) and lies_at(source, index, line.seed_path):
        return index
    for other in range(len(source.paths)):
        if lies_at(source, other, line.seed_path):
            return other
    raise ExpansionError(
        f"{line.id}: its seed image {line.seed_path} is not in the source any more."
    )
