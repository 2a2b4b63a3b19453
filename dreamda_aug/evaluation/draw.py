"""One draw: its labeled and held-out images, and the synthetic ones that its arms share."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dreamda_aug.amst import AMST_PLUS, LabelPrior
from dreamda_aug.calibration.judge import predict_out_of_fold
from dreamda_aug.calibration.probe import features_for_labels
from dreamda_aug.evaluation.result import REAL, Arm, Run
from dreamda_aug.evaluation.training import (
    AMST_PLAN,
    PARTS,
    Labeled,
    Trainer,
    class_accuracy,
    rand_augment,
)
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.inputs.pixels import fit_to
from dreamda_aug.inputs.seed_images import SeedImages
from dreamda_aug.models import DiffusionModel

# About how many synthetic images are held in the size of their seed images.
_CHUNK = 64


@dataclass
class Small:
    """What images look like to the classifier; an `ImageFormat`."""

    channels: int
    image_size: tuple[int, int]
    name: str = "the classifier"

    def fit(self, values: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] to the classifier's channels and size, uint8."""
        return (fit_to(values, self) * 255).round().to(torch.uint8)

    def read(self, images: SeedImages) -> Tensor:
        """All of them, (N, C, H, W) uint8."""
        return torch.cat([self.fit(images.read(row).values) for row in range(len(images))])


@dataclass(frozen=True)
class Draw:
    """Trains arms on one set of labeled images, and tests them on another.

    Attributes:
        number: of the draw; another one makes other synthetic images.
        trainer: with the labeled images as the classifier sees them.
        images: the labeled images as the user has them.
        test: held-out images and their classes.
        makers: preset -> what makes its images.
        arms: all that will be run; of each preset, images are made for the largest ratio once.
    """

    number: int
    trainer: Trainer
    images: SeedImages
    test: Labeled
    makers: Mapping[str, Synthesizer]
    arms: Sequence[Arm]
    _made: dict[str, Tensor] = field(default_factory=dict)

    def run(self, arm: Arm) -> Run:
        """Train an arm, and test it."""
        pool, trainer = self._pool(arm) if arm.preset else None, self.trainer
        began, kept = time.perf_counter(), None
        if pool is None or arm.labels == "seed":
            view = trainer.weak if arm.name == REAL else self._strong
            classifier = trainer.supervised(arm.name, view, pool)
        else:
            prior = None if arm.labels == "AMST" else estimate_label_prior(
                self.makers[arm.preset].model, (trainer.pixels, trainer.labels), pool,
                trainer.num_classes)
            training = trainer.self_training(
                arm.name, self._strong, pool, AMST_PLUS if prior else AMST_PLAN, label_prior=prior)
            classifier = training.wrapper.model
            kept = training.reports[-1].seed_label_agreement
        accuracy = class_accuracy(classifier, *self.test, trainer.device)
        return Run(arm.name, self.number, accuracy, time.perf_counter() - began, kept)

    def measure(self) -> tuple[float, float]:
        """Seconds of an optimizer step, from a few, and of an image of the slowest preset."""
        began, per_image = time.perf_counter(), 0.0
        replace(self.trainer, train_steps=PARTS).supervised("timing", self._strong)
        per_step = (time.perf_counter() - began) / PARTS
        for preset in {arm.preset for arm in self.arms if arm.preset}:
            began = time.perf_counter()
            count = self._make(preset, [0]).shape[1]
            per_image = max(per_image, (time.perf_counter() - began) / count)
        return per_step, per_image

    def _strong(self, images: Tensor) -> Tensor:
        """RandAugment on top of the weak view."""
        return rand_augment(self.trainer.weak(images))

    def _ratio(self, preset: str) -> int:
        return max(arm.expansion_ratio for arm in self.arms if arm.preset == preset)

    def _pool(self, arm: Arm) -> Labeled:
        """The first images of each labeled one, of those that are made for all arms."""
        if arm.preset not in self._made:
            count = len(self.images)
            step = max(1, _CHUNK // self._ratio(arm.preset))
            self._made[arm.preset] = torch.cat([
                self._make(arm.preset, range(first, min(first + step, count)))
                for first in range(0, count, step)])
        made = self._made[arm.preset][:, : arm.expansion_ratio]
        return made.flatten(0, 1), self.trainer.labels.repeat_interleave(arm.expansion_ratio)

    def _make(self, preset: str, rows: Sequence[int]) -> Tensor:
        """Images of some labeled ones, for the largest ratio, (rows, ratio, C, H, W) uint8."""
        ratio, images = self._ratio(preset), self.images
        _, channels, height, width = self.trainer.pixels.shape
        small, names = Small(channels, (height, width)), images.file_names or images.paths
        repeated = [row for row in rows for _ in range(ratio)]
        opened = {row: images.open(row).image for row in rows}
        made = self.makers[preset].synthesize_values(
            [opened[row] for row in repeated], self.trainer.labels[repeated].tolist(),
            list(range(ratio)) * len(rows), self.number, [names[row] for row in repeated])
        fitted = torch.cat([small.fit(values) for _, values in made])
        return fitted.unflatten(0, (len(rows), ratio))


def estimate_label_prior(
    model: DiffusionModel, labeled: Labeled, pool: Labeled, classes: int
) -> LabelPrior:
    """How often images made of labeled ones kept the class, by probes that saw no seed image.

    Args:
        model: made the images; the probes see its features.
        labeled: images and their classes.
        pool: as many images of each labeled one, side by side.
        classes: how many there are.
    """
    real, made = (fit_to(each.float() / 255, model) for each, _ in (labeled, pool))
    seed_index = torch.arange(len(made)) // (len(made) // len(real))
    predicted, confusion = predict_out_of_fold(features_for_labels(model)[0], real, labeled[1],
                                               made, seed_index, num_classes=classes)
    return LabelPrior.estimate(pool[1], predicted, classes, confusion=confusion)
