"""Whether synthetic images keep the class of their seed image, as the model's own probe sees it."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dreamda_aug.calibration.automatic import ENOUGH_RIGHT, draw_sample
from dreamda_aug.calibration.judge import fold_judge
from dreamda_aug.errors import DreamDAError
from dreamda_aug.expansion.layouts import StoredImages
from dreamda_aug.expansion.manifest import ManifestLine, read_manifest
from dreamda_aug.expansion.regeneration import load_recorded
from dreamda_aug.inputs.pixels import fit_to, read_pixels
from dreamda_aug.inputs.seed_images import SeedImages
from dreamda_aug.statistics import wilson_interval

# Seed images that count at most, and synthetic images of each.
_SEED_IMAGES, _REPLICAS = 64, 3


class LabelsKept(NamedTuple):
    """The share of a sample of synthetic images that show the class of their seed image.

    Attributes:
        share: in [0, 1].
        interval: 95 % interval of the share, which counts seed images.
        images: synthetic images that were judged.
        seed_images: that they were made from; the judge gets each of these right.
        classes: of these seed images.
        judge: what judged.
    """

    share: float
    interval: tuple[float, float]
    images: int
    seed_images: int
    classes: int
    judge: str


def judge_labels(
    root: Path, metadata: Mapping[str, Any], source: SeedImages | None, made: Collection[int],
    model: str | Path | None = None, lora: str | Path | None = None,
) -> LabelsKept | str:
    """Judge a sample, even over classes and the same each time, as calibration judges.

    Asks no network for the model.

    Args:
        root: the dataset's folder.
        metadata: what `read_metadata` returns.
        source: the seed images, or None if they are not at hand.
        made: numbers of the seed images that have synthetic ones.
        model: as in `write_report`, as is ``lora``.

    Returns:
        The share, or why there is none, in a few words.
    """
    if source is None:
        return "the seed images are not at hand"
    if len(set(source.labels)) < 2:
        return "there is one class alone"
    try:
        judging = load_recorded(root, metadata, model=model, lora=lora, offline=True)
    except (DreamDAError, OSError, ValueError) as error:
        return f"the model could not be loaded: {str(error).splitlines()[0].rstrip('.')}"
    sample = draw_sample(source, range(len(source)), judging, None, first=made)
    judge = None if sample is None else fold_judge(judging, sample.images, sample.labels)
    if sample is None or judge is None:
        return "too few seed images can be read"
    everything = torch.arange(len(sample.labels))
    right = judge.keeps(sample.images, everything).tolist()
    row_of = {index: row for row, index in enumerate(sample.indices)
              if right[row] and index in made}
    row_of = dict(list(row_of.items())[:_SEED_IMAGES])
    lines: dict[int, list[ManifestLine]] = defaultdict(list)
    for line in read_manifest(root):
        index = line.seed_index
        if (index in row_of and len(lines[index]) < _REPLICAS
                and source.paths[index] == line.seed_path):
            lines[index].append(line)
    chosen = [line for several in lines.values() for line in several]
    count = sum(map(bool, lines.values()))
    if count < ENOUGH_RIGHT:
        return f"the judge gets {count} seed images right, and {ENOUGH_RIGHT} are needed"
    stored = StoredImages(root, [line.file for line in chosen])
    images = torch.cat([fit_to(read_pixels(stored.open(line.file)).values, judging)
                        for line in chosen])
    rows = torch.tensor([row_of[line.seed_index] for line in chosen])
    share = judge.keeps(images, rows).double().mean().item()
    return LabelsKept(share, wilson_interval(share, count), len(chosen), count,
                      len(sample.labels[rows].unique()), judge.name)
