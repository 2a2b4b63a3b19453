"""Automatic calibration, run once per dataset on a small sample of its images, and cached."""

import contextlib
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dreamda_aug.calibration.judge import fold_judge
from dreamda_aug.calibration.probe import noised
from dreamda_aug.calibration.search import Measurement, Target, choose, dial_choices
from dreamda_aug.files import locked
from dreamda_aug.generation.dials import (
    Calibration,
    calibration_path,
    find_calibration,
    keep_calibration,
)
from dreamda_aug.generation.sampler import in_turn
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.inputs.listing import UNREADABLE
from dreamda_aug.inputs.pixels import fit_to
from dreamda_aug.inputs.seed_images import SeedImages
from dreamda_aug.metrics.distances import nearest
from dreamda_aug.models import DiffusionModel
from dreamda_aug.models.conditioning import Condition
from dreamda_aug.models.load import BUNDLED

logger = logging.getLogger(__name__)

# Fewer choices than `calibrate` tries. Beyond strength 0.85 little of the seed image is left; more
# noise than 1 breaks images before they lose their class.
GRID = {"strengths": (0.3, 0.5, 0.7, 0.85), "replays": (1.0, 0.9, 0.6, 0.0),
        "noise_scales": (0.5, 1.0)}
MIN_AGREEMENT = 0.9
EXPANSION_RATIO = 2
# U-Net rows to spend: under two minutes for the bundled model on one core.
MAX_ROWS = 7_000
# Of a judge that is right on fewer seed images, agreement means little.
ENOUGH_RIGHT = 6
# Where classes cannot be judged, images go this share of the way to their nearest neighbour.
_NEIGHBOUR_SHARE = 0.5

# Images that dials are measured on, and labeled images that the judge learns from, these included.
MEASURED, JUDGED = 24, 256
# More classes than these are not told apart by so few images; the rule takes some of them.
MAX_CLASSES = 16
_MAX_BYTES = 2**29

# The bundled model's denoising error on its own training images (RMS of latents, mean over noise
# levels, median over images), and how many times as large it is on images that are called foreign:
# unseen images of its own kind lie at 0.9, handwritten digits at 1.5, photographs at 1.6.
_USUAL_ERROR, _FOREIGN_RATIO = 0.1607, 1.3
# Fewer images do not tell; more are not needed.
_FOREIGN_LEAST, _FOREIGN_MOST = 8, 32


def looks_at_images(synthesizer: Synthesizer) -> bool:
    """Whether `calibrated` would read images of the dataset."""
    return get_worker_info() is None and (
        synthesizer.name == BUNDLED or bool(synthesizer.requested_settings.open_dials))


def calibrated(
    synthesizer: Synthesizer, images: SeedImages, indices: Iterable[int],
    condition_of: Callable[[int], Condition] | None = None,
) -> tuple[Synthesizer, Calibration | None]:
    """A synthesizer whose dials are numbers: measured on a dataset, once, where they were not.

    What was measured on the same sample before is found beside the cache; so is what `calibrate`
    measured by hand, and what comes with the bundled model for images of its own kind. Processes
    that share a cache on one machine measure once: the others wait. In a worker of a DataLoader
    nothing is measured. Price and choice are logged as warnings. The bundled model warns of images
    that are unlike those it was trained on.

    Args:
        synthesizer: what is to be used; stays as it is.
        images: the dataset. Without labels there is no judge: images go part of the way to their
            nearest neighbour.
        indices: which of its images are used.
        condition_of: the condition of an image, by its index, or None for the model's null class
            or the empty prompt.

    Returns:
        The synthesizer, with numbers for what was None; and the calibration that they are from.
        The given synthesizer and None, where all were numbers or there is one image alone.
    """
    if not looks_at_images(synthesizer):
        return synthesizer, None
    requested, model = synthesizer.requested_settings, synthesizer.model
    sample = draw_sample(images, indices, model, condition_of)
    foreign = sample and model.name == BUNDLED and warn_if_foreign(model, sample.images)
    if sample is None or not requested.open_dials:
        return synthesizer, None
    labeled = condition_of is not None or not synthesizer.conditioner.needs_label(model)
    found = find_calibration(
        requested, model, synthesizer.cache, shipped=not foreign, labeled=labeled
    ) or _measure_once(synthesizer, sample)
    logger.warning("calibrated: %s", found.summary())
    return synthesizer.with_settings(found.resolve(requested)), found


@dataclass(frozen=True)
class Sample:
    """Images of a dataset, as a model takes them.

    Attributes:
        images: (N, C, H, W) in [0, 1]; dials are measured on the first `MEASURED` of them.
        labels: their classes, numbered anew, (N,) int64.
        conditions: what generation is conditioned on for each.
        digest: of all three.
        indices: number of each image in the dataset.
    """

    images: Tensor
    labels: Tensor
    conditions: list[Condition]
    digest: str
    indices: list[int]


def draw_sample(
    images: SeedImages, indices: Iterable[int], model: DiffusionModel,
    condition_of: Callable[[int], Condition] | None, first: Collection[int] = (),
) -> Sample | None:
    """Draw images evenly over classes, without unreadable ones and duplicates.

    Args:
        images: the dataset.
        indices: which of its images may be drawn.
        model: gives their size and channels.
        condition_of: as in `calibrated`.
        first: those of the indices to draw before all others.

    Returns:
        The sample, or None where fewer than two images differ and can be read.
    """
    channels, (height, width) = model.channels, model.image_size
    count = max(MEASURED, min(JUDGED, _MAX_BYTES // (4 * channels * height * width)))
    classes = images.labels or [0] * len(images)
    number: dict[int, int] = {}
    found: dict[str, tuple[Tensor, int, Condition, int]] = {}
    spread = images.spread(among=indices, most_classes=MAX_CLASSES)
    for index in sorted(spread, key=lambda index: index not in first):
        if len(found) == count:
            break
        try:
            pixels = images.open(index).pixels
        except UNREADABLE:
            continue
        if pixels.digests[0] not in found:
            found[pixels.digests[0]] = (
                fit_to(pixels.values[:1], model), number.setdefault(classes[index], len(number)),
                condition_of(index) if condition_of else None, index)
    if len(found) < 2:
        return None
    values, labels, conditions, drawn = map(list, zip(*found.values(), strict=True))
    digest = hashlib.sha256(json.dumps([list(found), labels, conditions]).encode()).hexdigest()
    return Sample(torch.cat(values), torch.tensor(labels), conditions, digest, drawn)


def _measure_once(synthesizer: Synthesizer, sample: Sample) -> Calibration:
    """What another process has measured on this sample, or measures now; else measured here."""
    if synthesizer.cache is None:
        return _measure(synthesizer, sample)
    path = calibration_path(synthesizer.cache.root, synthesizer.requested_settings,
                            synthesizer.model, sample.digest)
    with contextlib.ExitStack() as alone:
        with contextlib.suppress(OSError):  # a cache that cannot be written; keeping warns of it
            alone.enter_context(locked(path.with_suffix(".lock"), wait=True))
        if path.exists():
            return Calibration.load(path)
        found = _measure(synthesizer, sample)
        keep_calibration(found, path)
        return found


def _measure(synthesizer: Synthesizer, sample: Sample) -> Calibration:
    choices = dial_choices(synthesizer.requested_settings, **GRID)
    count = len(sample.images[:MEASURED])
    judge = fold_judge(synthesizer.model, sample.images, sample.labels)
    measurement = Measurement(
        synthesizer.with_settings(choices[0]).sampler, sample.images[:count],
        sample.conditions[:count], judge, EXPANSION_RATIO)
    target = Target(MIN_AGREEMENT)
    if judge is None or measurement.right < min(ENOUGH_RIGHT, count):
        flat = sample.images.flatten(1)
        distances, _ = nearest(flat, flat, exclude=torch.arange(len(flat)))
        reach = _NEIGHBOUR_SHARE * float(distances.median()) / flat.shape[1] ** 0.5
        target = Target(max_distance=round(reach, 3))
    logger.warning(
        "%s is not calibrated for these images yet: trying how far they may go on %d of them, "
        "at most %s U-Net rows, %.0f s. Once only; --no-calibrate or calibrate=False takes mild "
        "defaults instead.", synthesizer.name, count, f"{MAX_ROWS:,}",
        MAX_ROWS * measurement.seconds_per_row())
    return replace(choose(measurement, choices, target, MAX_ROWS), sample=sample.digest)


@torch.no_grad()
def warn_if_foreign(model: DiffusionModel, images: Tensor) -> bool:
    """Warn of images, (N, C, H, W) in [0, 1], that look out of distribution for the bundled model.

    Returns whether they do; fewer than 8 images do not tell.
    """
    if len(images) < _FOREIGN_LEAST:
        return False
    images, errors = images[:_FOREIGN_MOST], []
    with in_turn(model):
        condition = model.embed([None] * len(images))
        for x_0, x_t, schedule in noised(model, images, (0.2, 0.4, 0.6)):
            output = model.predict(schedule.model_input(x_t, 0), schedule.timesteps[0], condition)
            clean, _ = schedule.predictions(output, x_t, 0)
            errors.append((clean - x_0).flatten(1).square().mean(1).sqrt())
    ratio = float(torch.stack(errors).mean(0).median()) / _USUAL_ERROR
    if ratio <= _FOREIGN_RATIO:
        return False
    warnings.warn(
        "these images are unlike what the bundled model was trained on, small grey pictures of "
        f"clothes: it restores them {ratio:.1f} times worse. It serves to try the library "
        "out. For photographs take a model of natural images, such as --model "
        "stable-diffusion-v1-5/stable-diffusion-v1-5; for images of a field of its own, adapt it "
        "with `dreamda adapt`, or train one with `dreamda train`.", stacklevel=4)
    return True
