"""Which augmentation suits the user's images: a small study on them that chooses one."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamda_aug.amst import WeakView
from dreamda_aug.arguments import checked, whole
from dreamda_aug.calibration.automatic import calibrated
from dreamda_aug.errors import StorageError
from dreamda_aug.evaluation.draw import Draw, Small
from dreamda_aug.evaluation.result import CLASSICAL, FINALISTS, REAL, RUNGS, Arm, Evaluation
from dreamda_aug.evaluation.training import PARTS, Trainer, small_classifier
from dreamda_aug.expansion import expand
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.inputs.seed_images import SeedImages, open_seed_images
from dreamda_aug.method.seeding import derive_seed
from dreamda_aug.method.settings import Settings, resolve_settings
from dreamda_aug.models.conditioning import Condition

logger = logging.getLogger(__name__)

PRESETS = ("samples", "recommended", "fast")
# Settings of the synthesizer itself, where they are those of no preset.
GIVEN = "given settings"
# Held-out images of each draw, at most, and labeled ones where the user names no number.
_LARGEST_TEST, _LABELED = 2000, 100
# Side of the images that classifiers see, if the model's are not smaller.
_IMAGE_SIZE = 32
# AMST looks at each image in two views, for this many times the price of a step.
_AMST_PRICE = 2.0


@checked
def evaluate(
    source: Any, synthesizer: Synthesizer | HasSynthesizer, *, shots: int | None = None,
    draws: int = 6, expansion_ratios: Sequence[int] = (5, 10),
    presets: Sequence[str] | Mapping[str, Settings] | None = None,
    settings: Mapping[str, Any] | None = None, train_steps: int = 320, train_batch_size: int = 64,
    learning_rate: float = 2e-3, flip: float = 0.5, image_size: int | None = None,
    classifier: Callable[[int, int], nn.Module] = small_classifier, device: str = "cpu",
    calibrate: bool = True, rng_seed: int = 0, out: str | Path | None = None,
    apply: str | Path | None = None, command: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Compare ways to train on a few of the images, and recommend one.

    In each draw, ``shots`` images of every class are labeled, and others are held out for testing.
    Real images only, RandAugment, and synthetic images of each preset and ratio under RandAugment
    are trained with equal starts, steps and batches. The poorer arms stop after a third and after
    two thirds of the draws. The best synthetic images are also labeled by AMST, and by AMST+ if the
    model is conditioned on the class. Keep your final test images out of ``source``, since the
    choice depends on what is held out of it.

    Args:
        source: what `expand` takes: class folders, a list, or a dataset of ``(image, label)``.
        synthesizer: makes the synthetic images. If its settings are no preset's, they are compared
            as ``"given settings"``.
        shots: labeled images per class, at least 2; or None for two thirds of the smallest class,
            up to 100 in all classes together.
        draws: how often they are drawn, at least 3.
        expansion_ratios: synthetic images per labeled one.
        presets: names, or name -> settings; or None for ``"samples"`` (if the model is conditioned
            on the class), ``"recommended"`` and ``"fast"``.
        settings: what differs from each named preset, such as ``{"steps": 20}``.
        train_steps: optimizer steps of every training, a multiple of 8.
        train_batch_size: images per step, at least 2.
        learning_rate: AdamW's.
        flip: probability that training images are mirrored; 0 for digits and letters.
        image_size: pixels that the classifier sees, or None for the model's, at most 32.
        classifier: channels and number of classes to a fresh classifier of images in [0, 1].
        device: where classifiers train, such as ``"cuda"``.
        calibrate: calibrate open dials once, on the labeled images of the first draw. False takes
            what `calibrate` found, or mild defaults.
        rng_seed: of draws and training; different ones share no draw.
        out: JSON file that keeps finished trainings, so that the same call resumes.
        apply: folder for the recommended synthetic images of all of ``source``.
        command: start of the command that makes images, for the recommendation's text.
        progress: called with a line for each training, or None to log it as a warning.

    Returns:
        The ranking, the recommendation, and the accuracies of all arms and draws.

    Raises:
        ValueError: an argument breaks its rule, or a class has too few images.
        StorageError: ``out`` holds another evaluation.

    Source: ours; successive halving as in Jamieson and Talwalkar 2016, arXiv:1502.07943.
    """
    draws, ratios = whole("draws", draws, RUNGS), sorted(set(expansion_ratios))
    if not ratios or min(ratios) < 1:
        raise ValueError(f"expansion_ratios must be integers >= 1, got {expansion_ratios}.")
    if whole("train_steps", train_steps, PARTS) % PARTS:
        raise ValueError(f"train_steps must be a multiple of {PARTS}, got {train_steps}.")
    whole("train_batch_size", train_batch_size, 2)
    whole("rng_seed", rng_seed, 0)
    if image_size is not None:
        whole("image_size", image_size, 1)
    weak = WeakView(flip, padding=0.06)
    say = progress or logger.warning
    images = open_seed_images(source).labeled()
    labels, classes = torch.tensor(images.labels), images.classes
    shots = count_shots(labels, classes, shots)
    maker = as_synthesizer(synthesizer).with_class_names(images.names)
    conditioned = maker.conditioner.needs_label(maker.model) and all(
        maker.conditioner.condition(label, maker.model) is not None
        for label in range(len(classes)))
    compared = _settings(presets, dict(settings or {}), maker, conditioned)
    side = image_size or min(_IMAGE_SIZE, *maker.model.image_size)
    small = Small(maker.model.channels, (side, side))

    def draw_rows(draw: int) -> tuple[Tensor, Tensor]:
        return draw_images(labels, shots, derive_seed(rng_seed, "draw", draw))

    began = time.perf_counter()
    makers = make_makers(maker, compared, images.subset(draw_rows(0)[0].tolist()), calibrate)
    seconds = {"calibration": time.perf_counter() - began}
    arms = [Arm(REAL), Arm(CLASSICAL), *(
        Arm(f"{name} x{ratio}", name, ratio,
            price=makers[name].sampler.rows(inversions=1, samples=ratio))
        for name in makers for ratio in ratios)]
    found = _resumed(out, Evaluation(
        {"source": images.digest(), "model": maker.model.fingerprint, "classes": len(classes),
         "shots": shots, "draws": draws, "train_steps": train_steps,
         "train_batch_size": train_batch_size, "learning_rate": learning_rate, "flip": flip,
         "image_size": side, "rng_seed": rng_seed,
         "dials": {name: each.settings.summary() for name, each in makers.items()}},
        arms, conditioned, seconds=seconds,
        command=command or 'expand(source, "OUT", synthesizer, {expansion_ratio}), '
                           'synthesizer with preset "{preset}"'))
    announced = False
    for draw in range(draws):
        missing = [arm for arm in found.contenders(found.rung(draw))
                   if draw not in found.accuracies(arm)]
        if not missing:
            continue
        chosen, held_out = draw_rows(draw)
        mine = images.subset(chosen.tolist())
        trainer = Trainer(
            partial(classifier, small.channels, len(classes)), small.read(mine),
            labels[chosen], len(classes), weak, train_steps, train_batch_size, learning_rate,
            derive_seed(rng_seed, "training", draw), device)
        test = small.read(images.subset(held_out.tolist())), labels[held_out]
        one = Draw(draw, trainer, mine, test, makers, missing)
        if not announced:
            say(_announcement(found, one))
            announced = True
        for arm in missing:
            began, run = time.perf_counter(), one.run(arm)
            found.runs.append(run)
            rest = time.perf_counter() - began - run.seconds
            for part, spent in (("training", run.seconds), ("generation", rest)):
                found.seconds[part] = found.seconds.get(part, 0.0) + spent
            if out is not None:
                found.save(out)
            say(f"draw {draw + 1} of {draws}  {arm.name}: {100 * run.accuracy:.1f} % "
                f"({run.seconds:.0f} s)")
    arm = found.recommended
    if apply is not None and arm.preset:
        expand(source, apply, maker.with_settings(compared[arm.preset]), arm.expansion_ratio,
               calibrate=calibrate)
    return found


def count_shots(labels: Tensor, classes: Sequence[str], shots: int | None) -> int:
    """Labeled images per class, checked: some of each class must be left to test on."""
    counts = labels.bincount(minlength=len(classes))
    smallest, fix = int(counts.min()), "Use fewer shots, or add images."
    if shots is None:
        shots = max(2, min(2 * smallest // 3, _LABELED // len(classes)))
        fix = "Add images, or leave the class out."
    if smallest <= whole("shots", shots, 2):
        raise ValueError(
            f"source must hold at least {shots + 1} images of each class, {shots} to train on and "
            f"one to test on; class {classes[int(counts.argmin())]!r} has {smallest}. {fix}")
    return shots


def draw_images(labels: Tensor, shots: int, rng_seed: int) -> tuple[Tensor, Tensor]:
    """Rows of the labeled images, class by class, and of the held-out images."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(rng_seed))
    chosen = torch.cat([order[labels[order] == label][:shots] for label in labels.unique()])
    left = torch.ones(len(labels), dtype=torch.bool)
    left[chosen] = False
    return chosen, order[left[order]][:_LARGEST_TEST]


def _settings(
    presets: Sequence[str] | Mapping[str, Settings] | None, changes: dict[str, Any],
    maker: Synthesizer, conditioned: bool,
) -> dict[str, Settings]:
    """What is compared: name -> settings."""
    if isinstance(presets, Mapping):
        return dict(presets)
    names = presets or (PRESETS if conditioned else PRESETS[1:])
    found = {name: resolve_settings(name, **changes) for name in names}
    if not (presets or changes) and maker.requested_settings not in found.values():
        found[GIVEN] = maker.requested_settings
    return found


def make_makers(
    maker: Synthesizer, settings: Mapping[str, Settings], images: SeedImages, calibrate: bool
) -> dict[str, Synthesizer]:
    """A synthesizer for each of the settings; open dials are measured on these images alone."""
    def condition(index: int) -> Condition:
        return maker.conditioner.condition(images.labels[index], maker.model, images.paths[index])

    makers = {name: maker.with_settings(each) for name, each in settings.items()}
    return {name: calibrated(each, images, range(len(images)), condition)[0] if calibrate else each
            for name, each in makers.items()}


def _resumed(out: str | Path | None, new: Evaluation) -> Evaluation:
    """What the file holds of the same evaluation, or the new one."""
    if out is None or not Path(out).exists():
        return new
    found = Evaluation.load(out)
    differing = [name for name, value in new.settings.items() if found.settings.get(name) != value]
    if differing or found.arms != new.arms:
        raise StorageError(
            f"{out}: expected this evaluation, found one with other {differing or 'arms'}. Name "
            "another file, or delete this one.")
    return found


def _announcement(found: Evaluation, draw: Draw) -> str:
    """The budget, and how long it will take at most."""
    synthetic, makers = sum(bool(arm.preset) for arm in found.arms), len(draw.makers)
    kept, settings = math.ceil(synthetic / 2), found.settings
    # trainings with seed labels, with AMST, and presets, of each draw of a rung
    rungs = [(2 + synthetic, 0, makers), (1 + kept, 1 + found.plus, min(kept, makers)),
             (1, FINALISTS, min(FINALISTS, makers))]
    of_draws = [rungs[found.rung(draw)] for draw in range(found.draws)]
    plain, amst, pools = (sum(column) for column in zip(*of_draws, strict=True))
    images = pools * len(draw.images) * max(arm.expansion_ratio for arm in found.arms)
    per_step, per_image = draw.measure()
    steps = settings["train_steps"] * (plain + _AMST_PRICE * amst)
    seconds = steps * per_step + images * per_image
    return (f"{len(found.arms)} ways to train, {settings['shots']} labeled images of each of "
            f"{settings['classes']} classes, {len(draw.test[1])} held out: {plain + amst} "
            f"trainings of {settings['train_steps']} steps and up to {images} synthetic images, at "
            f"most about {max(1, round(seconds / 60))} minutes")
