"""A grid of the user's images and synthetic images of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from dreamda_aug.arguments import checked, whole
from dreamda_aug.calibration.automatic import calibrated
from dreamda_aug.generation.sampler import Request
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.inputs.pixels import Pixels, fit_to
from dreamda_aug.inputs.seed_images import SeedImages, open_seed_images
from dreamda_aug.models.conditioning import Condition
from dreamda_aug.report.pictures import labeled_grid

# The largest grid that people can look at.
_MAX_CELLS = 10_000


@checked
def preview(
    source: Any, synthesizer: Synthesizer | HasSynthesizer, *, images: int = 8,
    expansion_ratio: int = 2, noise_scales: Sequence[float] | None = None, calibrate: bool = True,
) -> PIL.Image.Image:
    """Draw a grid: a row for each of some images, with synthetic images of it.

    Args:
        source: images, as `expand` takes them; labels may be missing.
        synthesizer: makes the synthetic images.
        images: how many seed images to show, even over classes.
        expansion_ratio: synthetic images of each, for each noise scale.
        noise_scales: columns of the grid, >= 0, or None for the synthesizer's own.
        calibrate: measure dials that are None on all images, as `expand` does.

    Raises:
        ValueError: an argument breaks its rule, or an image cannot be read.
    """
    images = whole("images", images, 1)
    expansion_ratio = whole("expansion_ratio", expansion_ratio, 1)
    seeds = open_seed_images(source)
    count = min(images, len(seeds))
    cells_asked = count * (1 + expansion_ratio * len(noise_scales or [0]))
    if cells_asked > _MAX_CELLS:
        raise ValueError(f"images, expansion_ratio and noise_scales must ask for {_MAX_CELLS:,} "
                         f"pictures at most, got {cells_asked:,}; `dreamda expand` makes many.")
    synthesizer = as_synthesizer(synthesizer).with_class_names(seeds.names)
    for scale in noise_scales or ():
        replace(synthesizer.requested_settings, noise_scale=scale)  # refused before the work
    sample, pixels, conditions = draw_some(seeds, count, synthesizer)
    if calibrate:
        condition_of = synthesizer.conditioner.of_images(seeds, synthesizer.model)
        synthesizer, _ = calibrated(synthesizer, seeds, range(len(seeds)), condition_of)
    sampler = synthesizer.sampler
    values = torch.cat([fit_to(each.values, sampler.model) for each in pixels])
    requests = [Request(row, conditions[row], replica)
                for row in range(count) for replica in range(expansion_ratio)]
    cells, columns = [[image] for image in values], ["seed"]
    for scale in noise_scales or [sampler.settings.noise_scale]:
        part = replace(sampler, settings=replace(sampler.settings, noise_scale=scale))
        made = part.synthesize(values, requests, [each.digests[0] for each in pixels]).images.cpu()
        for request, image in zip(requests, made, strict=True):
            cells[request.image].append(image)
        columns += [f"noise {scale:g}"] * expansion_ratio
    names = ([sample.classes[label] for label in sample.labels] if sample.labels
             else [Path(path).name for path in sample.paths])
    return labeled_grid(cells, names, columns)


def draw_some(
    images: SeedImages, count: int, synthesizer: Synthesizer
) -> tuple[SeedImages, list[Pixels], list[Condition]]:
    """Some of the images, even over classes, with their pixels and conditions."""
    sample = images.subset(sorted(images.spread(count)))
    pixels = [sample.read(index) for index in range(len(sample))]
    condition_of = synthesizer.conditioner.of_images(sample, synthesizer.model)
    return sample, pixels, list(map(condition_of, range(len(sample))))
