"""One synthetic image again, from its manifest line."""

from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from dreamda_aug.backbones import load_backbone
from dreamda_aug.expansion.manifest import (
    ExpansionError,
    ManifestLine,
    read_manifest,
    settings_from_json,
)
from dreamda_aug.expansion.processes import cpu_threads
from dreamda_aug.expansion.seed_images import Unreadable, pixel_digest, read_seed_image
from dreamda_aug.expansion.sources import Source, open_source
from dreamda_aug.expansion.store import WHERE, read_plan
from dreamda_aug.generator import Generator, Request
from dreamda_aug.transforms import DreamDAugment


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
    augment: DreamDAugment | None = None,
    source: str | Path | Source | None = None,
    device: str | None = None,
) -> Regenerated:
    """Make one image of a synthetic dataset again.

    It runs in a batch of the same shape as at first, since the last bits follow the shape; the
    other rows are filled with the same seed image, since they do not follow the neighbours.

    Args:
        root: the dataset's folder.
        sample_id: the ``id`` or the ``file`` of its manifest line.
        augment: the augment that the dataset was made with; None: made from the record.
        source: the seed images, where they have moved; None: where the record says.
        device: as in `load_backbone`.

    Raises:
        ExpansionError: there is no such image; or seed image, backbone or settings are others.
        FileNotFoundError: the folder holds no finished dataset, or the seed images are gone.
    """
    facts = read_plan(root)
    where = facts[WHERE]
    line = find_line(root, sample_id)
    if source is None:
        if where["source"] is None:
            raise ExpansionError(
                f"{root} was made from a dataset object; pass source, the same dataset."
            )
        source = where["source"]["spec"]
        options = {name: where["source"].get(name) for name in ("split", "data_root")}
        source = open_source(source, **options)
    source = source if hasattr(source, "digest") else open_source(source)
    if augment is None:
        backbone = load_backbone(where["backbone"], device=device,
                                 low_memory=bool(facts.get("low_memory")))
        settings = settings_from_json(line.settings)
    else:
        backbone, settings = augment.generator.backbone, augment.generator.settings
    if backbone.fingerprint != line.backbone:
        raise ExpansionError(
            f"{line.id}: expected the backbone {line.backbone[:16]}, found "
            f"{backbone.fingerprint[:16]} ({backbone.name}): other weights or another dtype."
        )
    index = _find_seed_image(source, line)
    try:
        seed_image = read_seed_image(source, index, backbone)
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
    generator = Generator(backbone, settings, batch_size=len(requests), rng_seed=line.rng_seed)
    with cpu_threads(facts.get("threads")):
        made = generator.augment(
            seed_image.values.expand(len(line.layout), -1, -1, -1), requests,
            [line.seed_digest] * len(line.layout),
        ).cpu()
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
    if index < len(source.paths) and source.paths[index] == line.seed_path:
        return index
    try:
        return list(source.paths).index(line.seed_path)
    except ValueError:
        raise ExpansionError(
            f"{line.id}: its seed image {line.seed_path} is not in the source any more."
        ) from None
