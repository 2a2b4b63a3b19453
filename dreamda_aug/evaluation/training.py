"""How one arm is trained: all arms of a draw have equal starts, steps and batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LRScheduler
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from dreamda_aug.amst import AMST_PLUS, AMSTWrapper, PerImage, RunPlan, SelfTraining
from dreamda_aug.amst.batches import mixed_batches
from dreamda_aug.amst.labeling import CollapseWarning
from dreamda_aug.amst.rules import join_targets
from dreamda_aug.amst.views import View
from dreamda_aug.method.seeding import derive_seed, seeded

# AMST divides the steps into eight parts, so that all arms take equally many.
PARTS = 8
POOL_SHARE = 2  # synthetic images per real one in a batch
# One labeling round, since more of them changed nothing (results/accuracy/usps_amst.md).
AMST_PLAN = RunPlan(pretraining_epochs=1, epochs=3, relabel_every=3, ratio=AMST_PLUS.ratio)

# Images, (N, C, H, W) uint8, and their classes, (N,) int64. In a pool, those that images were made
# for, −1 where there is none; or probabilities, (N, classes).
Labeled = tuple[Tensor, Tensor]
# A batch and its labels to the same, as v2's MixUp and CutMix.
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def small_classifier(channels: int, num_classes: int) -> nn.Module:
    """A convolutional network that trains in seconds on a CPU, for images of 16 pixels or more.

    GroupNorm: batch statistics of mixed real and synthetic images mislead.
    """
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU(),
                nn.MaxPool2d(2)]

    net = nn.Sequential(*block(channels, 16), *block(16, 32), *block(32, 64),
                        nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(0.2),
                        nn.Linear(64 * 9, num_classes))
    # a third quicker on processors
    return net.to(memory_format=torch.channels_last)


# Draws of its own for each image would take as long as the training itself.
rand_augment = PerImage(v2.RandAugment(), group=4)


@dataclass(frozen=True)
class Trainer:
    """What all arms of a draw have in common.

    Attributes:
        build: a fresh classifier of images in [0, 1].
        pixels: labeled images, (N, C, H, W) uint8.
        labels: their classes, (N,) int64.
        num_classes: how many classes there are.
        weak: the weak view, mirrored and shifted.
        train_steps: optimizer steps, a multiple of `PARTS`.
        train_batch_size: images per step.
        learning_rate: AdamW's at its peak, with cosine decay.
        rng_seed: the same for all arms of a draw; the global generator is not touched.
        device: where it trains.
    """

    build: Callable[[], nn.Module]
    pixels: Tensor
    labels: Tensor
    num_classes: int
    weak: View
    train_steps: int
    train_batch_size: int
    learning_rate: float
    rng_seed: int
    device: str

    def supervised(
        self, name: str, view: View, pool: Labeled | None = None, mix: Mix | None = None
    ) -> nn.Module:
        """A classifier trained on labeled images and, if given, on a pool with its own labels.

        Args:
            name: of the arm; another one draws other augmentations.
            view: what images look like to the classifier.
            pool: two of its images come with each labeled one.
            mix: v2's MixUp or CutMix, from a batch and its labels to the same.
        """
        with self.seeded(name):
            model = self.fresh()
            schedule = self.schedule(model.parameters(), self.train_steps)
            self.fit(model, schedule, view, self.train_steps, pool, mix)
        return model.eval()

    def self_training(
        self, name: str, strong: View, pool: Labeled, plan: RunPlan = AMST_PLAN,
        of_wrapper: Mapping[str, Any] | None = None, **options: Any,
    ) -> SelfTraining:
        """A finished training on labeled images and on a pool that AMST labels.

        Args:
            name: of the arm; another one draws other augmentations.
            strong: the strong view.
            pool: what is labeled.
            plan: stages and batches; a labeler needs one without pretraining.
            of_wrapper: further arguments of `AMSTWrapper`.
            options: further arguments of `SelfTraining`.
        """
        parts = plan.pretraining_epochs + plan.epochs
        period = self.train_steps // parts
        # after AMST+ has labeled, the learning rate comes down once more, to the end
        longer = plan.epochs if parts == PARTS else 1
        plan = replace(plan, batch_size=self.train_batch_size, steps_per_epoch=period)
        model = self.fresh()
        with self.seeded(name):
            wrapper = AMSTWrapper(model, **{"weak": self.weak, "strong": strong,
                                            "main_view": "strong", **(of_wrapper or {})})
            groups = wrapper.to(self.device).parameter_groups(self.learning_rate)
            schedule = self.schedule(groups, period, longer)
            training = SelfTraining(
                wrapper, TensorDataset(self.pixels.float() / 255, self.labels),
                TensorDataset(pool[0].float() / 255, pool[1]), schedule.optimizer,
                scheduler=schedule, plan=plan, rng_seed=self.rng_seed, **options)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CollapseWarning)
                training.run()
        wrapper.to_classifier().eval()
        return training

    def fit(
        self, model: nn.Module, schedule: LRScheduler, view: View, steps: int,
        pool: Labeled | None = None, mix: Mix | None = None, done: int = 0,
    ) -> None:
        """Take optimizer steps; the arguments are those of `supervised`.

        Args:
            done: steps taken before, which decide the batches.
        """
        pixels, targets, size = self.pixels, self.labels, 0
        if pool is not None:
            pixels, size = torch.cat([pixels, pool[0]]), len(pool[0])
            targets = join_targets(targets, pool[1], self.num_classes)
        batches = mixed_batches(
            len(self.pixels), range(size), [], batch_size=self.train_batch_size,
            ratio=(1, POOL_SHARE, 0), steps=steps,
            rng_seed=derive_seed(self.rng_seed, "batches", done))
        model.train()
        for rows in batches:
            images = view(pixels[rows].float() / 255).to(self.device)
            answers = targets[rows]
            if mix is not None:
                images, answers = mix(images, answers)
            loss = F.cross_entropy(model(images), answers.to(self.device))
            schedule.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            schedule.optimizer.step()
            schedule.step()

    def fresh(self) -> nn.Module:
        """A classifier with the first weights of all arms of the draw."""
        with self.seeded("classifier"):
            return self.build().to(self.device)

    def seeded(self, name: str) -> AbstractContextManager[None]:
        """Global generators, seeded inside by the arm's name and restored afterwards."""
        return seeded(derive_seed(self.rng_seed, name), torch.device(self.device))

    def schedule(
        self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], period: int,
        longer: int = 1,
    ) -> LRScheduler:
        """AdamW with cosine decay over ``period`` steps, then over ``longer`` times as many, ..."""
        optimizer = torch.optim.AdamW(parameters, self.learning_rate, weight_decay=1e-3)
        return CosineAnnealingWarmRestarts(optimizer, period, longer)


@torch.no_grad()
def predict(classifier: nn.Module, pixels: Tensor, device: str = "cpu") -> Tensor:
    """Labels that a classifier gives to uint8 images, (N,) int64."""
    return torch.cat([classifier(part.to(device).float() / 255).argmax(1).cpu()
                      for part in pixels.split(500)])


def class_accuracy(
    classifier: nn.Module, pixels: Tensor, labels: Tensor, device: str = "cpu"
) -> float:
    """Share of right answers on uint8 images, averaged over the classes that occur."""
    right = (predict(classifier, pixels, device) == labels).float()
    return torch.stack([right[labels == c].mean() for c in labels.unique()]).mean().item()
