"""Grids and plots as image files; a grid of the user's images and synthetic images of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dreamda_aug.arguments import checked, whole
from dreamda_aug.calibration.automatic import calibrated
from dreamda_aug.generation.dials import Calibration
from dreamda_aug.generation.sampler import Request
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.inputs.pixels import Pixels, fit_to
from dreamda_aug.inputs.seed_images import SeedImages, open_seed_images
from dreamda_aug.models.conditioning import Condition

_GAP, _FONT_SIZE = 2, 13
# The largest grid that people can look at.
_MAX_CELLS = 10_000


def labeled_grid(
    images: Sequence[Sequence[Tensor]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    min_side: int = 56,
) -> PIL.Image.Image:
    """A picture of rows of images with names at the left and on top.

    Args:
        images: rows of images (C, H, W) in [0, 1], all of one size.
        row_names: one per row.
        column_names: one per column; a name that repeats is written once, over all its columns.
        min_side: small images are enlarged, by a whole factor, to at least so many pixels.
    """
    font = PIL.ImageFont.load_default(_FONT_SIZE)
    height, width = images[0][0].shape[1:]
    factor = max(1, -(-min_side // min(height, width)))
    height, width = height * factor + _GAP, width * factor + _GAP
    left = int(max(font.getlength(name) for name in row_names)) + 12
    top = _FONT_SIZE + 10
    canvas = PIL.Image.new("RGB", (left + width * len(column_names), top + height * len(images)),
                           "white")
    draw = PIL.ImageDraw.Draw(canvas)
    start = 0
    for column in range(1, len(column_names) + 1):
        if column == len(column_names) or column_names[column] != column_names[start]:
            middle = left + width * (start + column) / 2
            draw.text((middle, top / 2), column_names[start], "black", font, "mm")
            if start:
                draw.line((left + width * start - 1, 4, left + width * start - 1, canvas.height),
                          "#999999")
            start = column
    for row, (name, cells) in enumerate(zip(row_names, images, strict=True)):
        draw.text((left - 6, top + height * (row + 0.5)), name, "black", font, "rm")
        for column, image in enumerate(cells):
            picture = F.to_pil_image((image.cpu() * 255).round().to(torch.uint8)).convert("RGB")
            picture = picture.resize((width - _GAP, height - _GAP), PIL.Image.Resampling.NEAREST)
            canvas.paste(picture, (left + width * column, top + height * row))
    return canvas


def plot_calibration(calibration: Calibration, path: str | Path) -> None:
    """Fidelity against distance of everything that `calibrate` tried, as an image file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    several = len({point.strength for point in calibration.points}) > 1
    hooks = len({point.block_index for point in calibration.points}) > 1
    for key in dict.fromkeys((p.block_index, p.strength, p.replay) for p in calibration.points):
        line = [p for p in calibration.points if (p.block_index, p.strength, p.replay) == key]
        strength = f"strength {key[1]:g}, " if several and key[1] is not None else ""
        hook = f"hook {key[0]}, " if hooks else ""
        axes.plot([p.distance for p in line], [p.agreement for p in line],
                  "o-" if len(line) > 1 else "o", label=f"{hook}{strength}replay {key[2]:g}")
        for point in line:
            axes.annotate(f"{point.noise_scale:g}", (point.distance, point.agreement),
                          xytext=(4, 4), textcoords="offset points", fontsize=8)
    chosen = calibration.chosen
    axes.plot(chosen.distance, chosen.agreement, "o", markersize=15, fillstyle="none",
              color="black", label="chosen")
    axes.set(xlabel="RMS pixel distance from the seed image",
             ylabel="fidelity: share of replicas that keep their label",
             title=f"Numbers are noise scales; target: {calibration.target}")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


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
