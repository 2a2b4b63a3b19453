"""Calibration without being asked: once for a dataset, on a small sample of its images."""

import contextlib
import logging
from collections.abc import Callable, Iterable

import torch
from torch.utils.data import get_worker_info

from dreamda_aug.calibration.judge import fold_judge
from dreamda_aug.calibration.samples import Sample, draw_sample
from dreamda_aug.calibration.search import Dials, Measurement, Target, coarse
from dreamda_aug.calibration.sweep import choices_for, choose, save
from dreamda_aug.files import locked
from dreamda_aug.generation.dials import (
    Calibration,
    calibration_path,
    find_calibration,
    is_calibrated,
    with_calibration,
)
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.inputs.seed_images import SeedImages
from dreamda_aug.method.settings import Settings
from dreamda_aug.metrics.distances import nearest
from dreamda_aug.models import BUNDLED, Condition, DiffusionModel

logger = logging.getLogger(__name__)

# What is tried where nobody says: fewer choices than `calibrate` tries. Further up than 0.85 little
# of the seed image is left; more noise than 1 breaks images before they lose their class.
AUTOMATIC_STRENGTHS = (0.3, 0.5, 0.7, 0.85)
AUTOMATIC_NOISE_SCALES = (0.5, 1.0)
AUTOMATIC_REPLAYS = (1.0, 0.9, 0.6, 0.0)
MIN_AGREEMENT = 0.9
REPLICAS = 2
# U-Net rows to spend: under two minutes for the bundled model on one core.
MAX_ROWS = 7_000
# Of a judge that is right on fewer seed images, agreement says little.
_ENOUGH_RIGHT = 6
# Where classes cannot be judged, images go this share of the way to their nearest neighbour.
_NEIGHBOUR_SHARE = 0.5
# Choices that a search looks at, for its price: coarse ones, and full ones.
_USUAL_LOOKS = (8, 2)


def calibrated(
    synthesizer: Synthesizer, images: SeedImages, indices: Iterable[int],
    condition_of: Callable[[int], Condition],
) -> tuple[Synthesizer, Calibration | None]:
    """A synthesizer whose dials are numbers: measured on a dataset, once, where they were not.

    What was measured on the same sample before is found beside the cache; so is what `calibrate`
    measured by hand, and what comes with the bundled model for images of its own kind. Processes
    that share a cache on one machine measure once: the others wait. In a worker of a DataLoader
    nothing is measured. Price and choice are logged as warnings.

    Args:
        synthesizer: what is to be used; stays as it is.
        images: the dataset.
        indices: which of its images are used.
        condition_of: the condition of an image, by its index.

    Returns:
        The synthesizer, with numbers for what was None; and the calibration that they are from.
        The synthesizer as it is and None, where all were numbers or there is one image alone.
    """
    requested, cache = synthesizer.requested_settings, synthesizer.cache
    is_bundled = synthesizer.model.name == BUNDLED
    if get_worker_info() is not None or not is_bundled and is_calibrated(requested):
        return synthesizer, None
    model = synthesizer.model
    by_hand = None if is_calibrated(requested) else find_calibration(
        requested, model, cache, shipped=False)
    sample = draw_sample(images, indices, model, condition_of)
    foreign = is_bundled and sample is not None and synthesizer.first_images.are_foreign(
        model, sample.images, stacklevel=3)
    if is_calibrated(requested) or sample is None:
        return synthesizer, None
    found = by_hand
    if found is None and not foreign:
        found = find_calibration(requested, model, None)
    if found is None and cache is None:
        found = _measure(synthesizer, sample)
    elif found is None and cache is not None:
        path = calibration_path(cache.root, requested, model, sample.digest)
        with contextlib.ExitStack() as alone:
            with contextlib.suppress(OSError):  # a cache that cannot be written; saving will say so
                alone.enter_context(locked(path.with_suffix(".lock"), wait=True))
            if path.exists():
                found = Calibration.load(path)
            else:
                found = _measure(synthesizer, sample)
                save(found, path)
    assert found is not None
    logger.warning("calibrated: %s", found.summary())
    return synthesizer.with_settings(with_calibration(requested, found)), found


def _measure(synthesizer: Synthesizer, sample: Sample) -> Calibration:
    core, requested = synthesizer.core, synthesizer.requested_settings
    count = sample.measured
    judge = fold_judge(core.model, sample.images, sample.labels)
    measurement = Measurement(core, sample.images[:count], sample.labels[:count],
                              sample.conditions[:count], judge, REPLICAS)
    target = Target(MIN_AGREEMENT)
    if judge is None or measurement.right < min(_ENOUGH_RIGHT, count):
        target = Target(max_distance=_reach(sample))
    choices = choices_for(requested, _strengths(core.model, requested),
                          AUTOMATIC_REPLAYS, AUTOMATIC_NOISE_SCALES)
    rows = min(MAX_ROWS, _usual_rows(measurement, requested, choices))
    logger.warning(
        "%s is not calibrated for these images yet: trying how far they may go on %d of them, "
        "about %s U-Net rows, %.0f s. Once only; --no-calibrate or calibrate=False takes mild "
        "defaults instead.", core.model.name, count, f"{rows:,}",
        rows * measurement.seconds_per_row())
    return choose(measurement, requested, choices, target, MAX_ROWS, sample=sample.digest)


def _reach(sample: Sample) -> float:
    """How far images may go where no judge says: a share of the way to the nearest other one."""
    flat = sample.images.flatten(1)
    distances, _ = nearest(flat, flat, exclude=torch.arange(len(flat)))
    return round(_NEIGHBOUR_SHARE * float(distances.median()) / flat.shape[1] ** 0.5, 3)


def _strengths(model: DiffusionModel, settings: Settings) -> list[float]:
    """Those that the model's schedule has: some leave no signal at the noisiest level."""
    found = []
    for strength in AUTOMATIC_STRENGTHS:
        with contextlib.suppress(ValueError):
            model.schedule(settings.steps, strength, settings.timestep_spacing)
            found.append(strength)
    return found


def _usual_rows(
    measurement: Measurement, settings: Settings, choices: list[Dials]
) -> int:
    middle = choices[len(choices) // 2].of(settings)
    looks, full = _USUAL_LOOKS
    return (min(looks, len(choices)) * measurement.rows(coarse(middle), 16)
            + min(full, len(choices)) * measurement.rows(middle))
