"""The classifier of the study, and how each arm trains it: equal starts, steps and batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from dreamda_aug.amst import (
    AMSTWrapper,
    CollapseWarning,
    HeadViews,
    Labeler,
    LabelingRule,
    LabelPrior,
    RunPlan,
    SelfTraining,
    VotingRule,
    WeakView,
)
from dreamda_aug.method.seeding import derive_seed

# AMST's heads learn for two of so many parts of the steps before they label; for one, where a prior
# helps them.
PARTS = 8
# real : accepted : unlabeled images of a batch
_RATIO = (1, 1.75, 0.25)
# Of a model that was told the class nearly all labels are right once the prior is asked, and those
# that heads doubt teach most. Of others only what all heads are sure of is accepted.
_TRUSTING = VotingRule(agreement="majority", confidence_threshold=0.0)

# Images (N, C, H, W) in [0, 1] to the same.
View = Callable[[Tensor], Tensor]


def small_classifier(channels: int, num_classes: int) -> nn.Module:
    """A convolutional network that trains in minutes on a CPU, for images of 16 pixels or more.

    GroupNorm: batch statistics of mixed real and synthetic images mislead.
    """
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU(),
                nn.MaxPool2d(2)]

    return nn.Sequential(*block(channels, 16), *block(16, 32), *block(32, 64),
                         nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(0.2),
                         nn.Linear(64 * 9, num_classes))


def per_image(operation: nn.Module) -> View:
    """One of torchvision's transforms as a view: each image has draws of its own."""
    def apply(images: Tensor) -> Tensor:
        whole = (images * 255).round().to(torch.uint8)
        return torch.stack([operation(image) for image in whole]).to(images) / 255

    return apply


rand_augment = per_image(v2.RandAugment())


@dataclass(frozen=True)
class Trainer:
    """What all arms of a draw have in common.

    Attributes:
        build: a fresh classifier.
        images: labeled images, (N, C, H, W) in [0, 1].
        labels: their classes, (N,) int64.
        flip: probability that an image is mirrored.
        steps: optimizer steps, a multiple of `PARTS`.
        batch_size: images per step.
        learning_rate: AdamW's at its peak, with cosine decay.
        rng_seed: the same for all arms of a draw.
        device: where it trains.
    """

    build: Callable[[], nn.Module]
    images: Tensor
    labels: Tensor
    flip: float
    steps: int
    batch_size: int
    learning_rate: float
    rng_seed: int
    device: str

    @property
    def weak(self) -> View:
        """Mirrored and shifted by a few pixels."""
        return WeakView(flip=self.flip, padding=0.06)

    def strong(self, images: Tensor) -> Tensor:
        """RandAugment on top of the weak view."""
        return rand_augment(self.weak(images))

    def supervised(self, view: View) -> nn.Module:
        """Train on the labeled images alone."""
        model = self._fresh().train()
        optimizer, schedule = self._optimizer(list(model.parameters()), self.steps)
        generator = torch.Generator().manual_seed(derive_seed(self.rng_seed, "batches"))
        for _ in range(self.steps):
            rows = torch.randint(len(self.images), (self.batch_size,), generator=generator)
            batch = view(self.images[rows]).to(self.device)
            loss = F.cross_entropy(model(batch), self.labels[rows].to(self.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        return model.eval()

    def self_training(
        self, synthetic: Tensor, seed_labels: Tensor, labels: Labeler | LabelPrior | None
    ) -> tuple[nn.Module, float]:
        """Train on synthetic images too; RandAugment on top of all.

        Args:
            synthetic: (M, C, H, W) in [0, 1].
            seed_labels: (M,) int64, as many of each class.
            labels: what labels them; None: AMST's heads, as in the paper; a prior: the same heads,
                which know of a generator that was told the class.

        Returns:
            The classifier, and the share of labels that are the seed image's.
        """
        prior = labels if isinstance(labels, LabelPrior) else None
        labeler = None if isinstance(labels, LabelPrior) else labels
        wrapper = AMSTWrapper(self._fresh(), weak=self.weak, strong=self.strong,
                              views=HeadViews(main="strong"),
                              voting=VotingRule() if prior is None else _TRUSTING)
        groups = wrapper.to(self.device).parameter_groups(self.learning_rate)
        part = self.steps // PARTS
        # a labeler is ready at once; AMST's heads must have learned, and the rate have come down
        first = 2 if labels is None else 1 if prior is not None else 0
        rest, decay = PARTS - first, first or PARTS
        optimizer, schedule = self._optimizer(groups, decay * part, rest // decay)
        plan = RunPlan(pretraining_epochs=first, epochs=rest, relabel_every=rest,
                       steps_per_epoch=part, batch_size=self.batch_size, ratio=_RATIO)
        rule = LabelingRule(distribution_alignment=prior is not None, label_prior=prior)
        training = SelfTraining(
            wrapper, TensorDataset(self.images, self.labels),
            TensorDataset(synthetic, seed_labels), optimizer, scheduler=schedule, plan=plan,
            labeler=labeler, labeling=rule,
            rng_seed=derive_seed(self.rng_seed, "self-training") % 2**31)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)
            report = training.run()[-1]
        return wrapper.to_classifier().eval(), report.seed_label_agreement or 0.0

    def _fresh(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.rng_seed, "classifier"))
            return self.build().to(self.device)

    def _optimizer(
        self, parameters: Sequence[nn.Parameter] | Sequence[dict[str, object]], period: int,
        longer: int = 1,
    ) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """AdamW with cosine decay over ``period`` steps, then over ``longer`` times as many."""
        optimizer = torch.optim.AdamW(parameters, self.learning_rate, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, period, longer)
        return optimizer, schedule


@torch.no_grad()
def class_accuracy(model: nn.Module, images: Tensor, labels: Tensor, device: str) -> float:
    """Share of right answers, averaged over the classes that occur."""
    answers = torch.cat([model(part.to(device)).argmax(1).cpu() for part in images.split(500)])
    right = (answers == labels).float()
    shares = [right[labels == label].mean().item() for label in labels.unique()]
    return sum(shares) / len(shares)
