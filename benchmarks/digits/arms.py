"""How one classifier is trained; arms differ in the labels of the synthetic images."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.common.amst_parts import AMST_PARTS, AMSTOptions
from benchmarks.digits.data import CLASSES, RunData
from dreamda_aug.amst import (
    AMSTWrapper,
    Labeler,
    PseudoLabels,
    RunPlan,
    SeedLabeler,
    SelfTraining,
    SingleHeadLabeler,
    WeakView,
)

STEPS, ROUNDS = 200, 3  # every arm takes STEPS * (1 + ROUNDS) optimizer steps
BATCH = 64
WEAK = WeakView(flip=0.0)  # a mirrored digit is no digit
ARMS = ("real only", "seed label", "single-head pseudo-label", "soft pseudo-label", "AMST",
        "true label")  # fmt: skip


def strong_view(images: Tensor) -> Tensor:
    """Rotated, sheared, scaled and shifted, each image by itself.

    `StrongView`'s colour operations and whole-pixel shifts leave little of 8×8 pixels.
    """
    count = len(images)
    angle, shear, scale, right, down = (
        largest * (2 * torch.rand(count) - 1) for largest in (0.35, 0.2, 0.15, 0.24, 0.24)
    )
    cos, sin, scale = angle.cos(), angle.sin(), 1 + scale
    rows = [torch.stack([scale * cos, shear - scale * sin, right], 1),
            torch.stack([scale * sin, scale * cos, down], 1)]  # fmt: skip
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class TrueLabeler:
    """Labels every image as the judge does."""

    def __init__(self, data: RunData) -> None:
        self.data = data

    def label(self, images: Tensor, seed_labels: Tensor | None = None) -> PseudoLabels:
        # images come straight from the run's data, so each can be looked up
        same = (images.flatten(1)[:, None] == self.data.synthetic.flatten(1)[None]).all(2)
        ones = torch.ones(len(images))
        return PseudoLabels(self.data.truth[same.int().argmax(1)], ones, ones, ones > 0)


def small_cnn() -> nn.Module:
    """GroupNorm, since batch statistics of mixed weak and strong views misled pseudo-labels.

    Nothing is averaged over positions: with three images per class, these tell digits apart.
    """

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU()]

    return nn.Sequential(
        *block(1, 32), *block(32, 32), nn.MaxPool2d(2), *block(32, 64),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(1024, CLASSES),
    )  # fmt: skip


def self_training(
    data: RunData, options: AMSTOptions, labeler: Labeler | None = None, **stages: int
) -> SelfTraining:
    """The classifier, freshly initialised, with what every arm has in common.

    Args:
        data: of this run.
        options: what differs of AMST.
        labeler: labels the synthetic images; None: the auxiliary heads.
        stages: what differs of the `RunPlan`.
    """
    torch.manual_seed(data.rng_seed)
    wrapper = AMSTWrapper(small_cnn(), weak=WEAK, strong=strong_view, **dict(options.options))
    optimizer = torch.optim.AdamW(wrapper.parameter_groups(2e-3), weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, STEPS)
    plan = RunPlan(pretraining_epochs=1, epochs=ROUNDS, steps_per_epoch=STEPS, batch_size=BATCH,
                   ratio=(1, 2, 0.25))
    return SelfTraining(
        wrapper,
        TensorDataset(data.real, data.targets),
        TensorDataset(data.synthetic, data.seed_labels),
        optimizer,
        scheduler=scheduler,
        plan=replace(options.change(plan), **stages),
        labeler=labeler,
        truth=data.truth,
        rng_seed=data.rng_seed,
    )


def supervised(training: SelfTraining, steps: int) -> None:
    """Train the main head on the real images alone."""
    real, targets = training.data.labeled.tensors
    training.wrapper.train()
    for _ in range(steps):
        rows = torch.randint(len(real), (BATCH,))
        training.optimizer.zero_grad()
        training.wrapper.losses(real[rows], targets[rows]).total.backward()
        training.optimizer.step()
        training.scheduler.step()


# Arms other than AMST have no consistency term.
PLAIN = AMST_PARTS["no consistency"]


def run_arm(data: RunData, arm: str) -> SelfTraining:
    """Train one arm to its end."""
    if arm in AMST_PARTS:
        training = self_training(data, AMST_PARTS[arm])
    elif arm == "real only":
        training = self_training(data, PLAIN, pretraining_epochs=0, epochs=0)
        supervised(training, STEPS * (1 + ROUNDS))
    elif arm in ("seed label", "true label"):
        labeler = SeedLabeler() if arm == "seed label" else TrueLabeler(data)
        training = self_training(data, PLAIN, labeler, pretraining_epochs=0, epochs=1 + ROUNDS)
    else:
        training = self_training(data, PLAIN, pretraining_epochs=0)
        training.labeler = SingleHeadLabeler(training.wrapper, soft=arm == "soft pseudo-label")
        supervised(training, STEPS)
    training.run()
    return training
