"""How one arm of the accuracy study is trained.

Every arm takes the same number of optimizer steps with the same batch size, starts from the same
weights and sees the same labelled images. Every arm but the first two uses the weak view, mirrored
and shifted, beneath what gives it its name: the diffusion arms so that comparing them with "flip +
crop" shows the synthetic images alone, the classical ones because that is how they are used. How
much of both is chosen on validation, with "flip + crop", since centred images bear little. In arms
with a pool a third of each batch are real images, whatever the pool.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accuracy_arms import Arm
from accuracy_pools import LIBRARY, Pool
from accuracy_tasks import Images, Split, Task
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision import models
from torchvision.transforms import v2

from dreamda_aug.amst import (
    AMSTWrapper,
    CollapseWarning,
    MixedBatchSampler,
    SelfTraining,
    SingleHeadLabeler,
    StrongView,
    WeakView,
)
from dreamda_aug.seeding import derive_seed

# The learning rate comes down so many times; the pool is labelled before the last ones.
STAGES, ROUNDS = 4, 3
POOL_SHARE = 2  # images of the pool per real one in a batch
# What `SelfTraining` is told beside the wrapper's defaults. One labelling round: with few steps in
# all, a restart before each would leave the last quarter of them alone to train the classifier,
# which cost 2 to 5 points on validation.
AMST_TRAINING = {"ratio": (1, 1.75, 0.25), "pretraining_epochs": STAGES - ROUNDS,
                 "epochs": ROUNDS, "relabel_every": ROUNDS}  # fmt: skip

# What decides a classifier's weights; a changed line means that runs are made anew.
TRAINING_CODE = [Path(__file__), LIBRARY / "amst" / "views.py", LIBRARY / "amst" / "pool.py"]
LABELLING_CODE = sorted((LIBRARY / "amst").glob("*.py"))


# --- classifiers


def small_cnn(task: Task, weights: Path | None) -> nn.Module:
    """GroupNorm: batch statistics of mixed weak, strong and synthetic images mislead."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU(),
                nn.MaxPool2d(2)]  # fmt: skip

    side = task.image_size // 8
    return nn.Sequential(*block(task.channels, 16), *block(16, 32), *block(32, 64), nn.Flatten(),
                         nn.Dropout(0.2), nn.Linear(64 * side * side, task.classes))  # fmt: skip


def resnet18(task: Task, weights: Path | None) -> nn.Module:
    """From scratch, for small images: a 3×3 stem, no first pooling, GroupNorm."""
    net = models.resnet18(num_classes=task.classes, norm_layer=lambda c: nn.GroupNorm(8, c))
    stride = 1 if task.image_size <= 32 else 2
    net.conv1 = nn.Conv2d(task.channels, 64, 3, stride, 1, bias=False)
    net.maxpool = nn.Identity()
    return net


def resnet18_pretrained(task: Task, weights: Path | None) -> nn.Module:
    """ImageNet's weights from a local file with torchvision's names, images enlarged twice."""
    if weights is None:
        raise SystemExit(f"{task.name} needs --weights FILE: torchvision's resnet18 of ImageNet.")
    net = models.resnet18()
    if weights.suffix == ".safetensors":
        net.load_state_dict(load_file(weights))
    else:
        net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    net.fc = nn.Linear(net.fc.in_features, task.classes)
    norm = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    larger = nn.Upsample(scale_factor=2, mode="bilinear")
    return nn.Sequential(norm, larger, net)


CLASSIFIERS: dict[str, Callable[[Task, Path | None], nn.Module]] = {
    builder.__name__: builder for builder in (small_cnn, resnet18, resnet18_pretrained)
}


# --- training


@dataclass(frozen=True)
class Outcome:
    """What one training run gave.

    Attributes:
        classifier: with its final weights.
        seconds: processor time of training.
        accepted: share of the pool that got a label in the last round; None without labelling.
        labels_right: share of these labels that the judge agrees with; None without a judge.
        steps: optimizer steps taken.
    """

    classifier: nn.Module
    seconds: float
    accepted: float | None
    labels_right: float | None
    steps: int


class Training:
    """One run: a fresh classifier, its optimizer, and how many steps it took.

    Args:
        task: what is trained on.
        arm: how.
        images: the split of this run.
        pool: the arm's pool.
        truth: what the judge says about the pool, (N,) int64; −1 where it is not asked.
        rng_seed: the same for all arms of a split.
        weights: of a pretrained classifier.
        device: where it trains.
    """

    def __init__(self, task: Task, arm: Arm, images: Split, pool: Pool, truth: Tensor,
                 rng_seed: int, weights: Path | None = None, device: str = "cpu"):  # fmt: skip
        self.task, self.arm, self.images, self.truth = task, arm, images, truth
        self.rng_seed, self.device = rng_seed, device
        torch.manual_seed(derive_seed(rng_seed, "classifier"))
        self.model = CLASSIFIERS[task.classifier](task, weights).to(device)
        self.weak = WeakView(*arm.weak)
        self.pixels, self.pool_labels = pool.pixels, pool.seed_labels
        if arm.unlabelled:
            self.pixels = torch.cat([self.pixels, images.unlabelled.pixels])
            unknown = torch.full_like(images.unlabelled.labels, -1)
            self.pool_labels = torch.cat([self.pool_labels, unknown])
            self.truth = torch.cat([self.truth, images.unlabelled.labels])
        self.steps = 0

    def run(self) -> Outcome:
        """Train to the end."""
        began = time.process_time()
        torch.manual_seed(derive_seed(self.rng_seed, self.arm.name))
        accepted = right = None
        if self.arm.labels == "amst":
            accepted, right = self._amst()
        elif self.arm.labels == "soft":
            right = self._soft()
        else:
            oracle = self.arm.labels == "oracle"
            labels = self.truth if oracle else self.pool_labels
            self._supervised(self._optimizer(self.model.parameters(), self.task.steps),
                             labels, self.task.steps)  # fmt: skip
            if len(self.pixels) and (self.truth >= 0).all():
                right = (labels == self.truth).float().mean().item()
        seconds = time.process_time() - began
        return Outcome(self.model.eval(), seconds, accepted, right, self.steps)

    def _optimizer(self, parameters, period: int):
        """AdamW with cosine decay that starts again every ``period`` steps."""
        optimizer = torch.optim.AdamW(parameters, self.task.learning_rate, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, period)
        return optimizer, schedule

    def _supervised(self, optimizing, pool_labels: Tensor | None, steps: int) -> None:
        """Cross-entropy on real images and, unless ``pool_labels`` is None, on the pool."""
        optimizer, schedule = optimizing
        real, targets = self.images.shots.pixels, self.images.shots.labels
        pixels, size = real, 0
        if pool_labels is not None:
            pixels, size = torch.cat([real, self.pixels]), len(self.pixels)
            if pool_labels.is_floating_point():
                targets = F.one_hot(targets, self.task.classes).float()
            targets = torch.cat([targets, pool_labels])
        sampler = MixedBatchSampler(
            len(real), range(size), [], batch_size=self.task.batch_size,
            ratio=(1, POOL_SHARE, 0), steps=steps,
            rng_seed=derive_seed(self.rng_seed, "batches", self.steps),
        )  # fmt: skip
        self.model.train()
        for rows in sampler:
            images, answers = self._view(pixels[rows]).to(self.device), targets[rows]
            if self.arm.mix:
                mix = getattr(v2, self.arm.mix)(num_classes=self.task.classes)
                images, answers = mix(images, answers)
            loss = F.cross_entropy(self.model(images), answers.to(self.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            self.steps += 1

    def _view(self, pixels: Tensor) -> Tensor:
        """uint8 -> what the classifier sees, as a DataLoader would hand it over."""
        if self.arm.view == "none":
            return pixels.float() / 255
        images = self.weak(pixels.float() / 255)
        if self.arm.view == "weak":
            return images
        operation = getattr(v2, self.arm.view)()
        each = (images * 255).round().to(torch.uint8)
        return torch.stack([operation(image) for image in each]).float() / 255

    def _soft(self) -> float | None:
        """Self-training with one head's probabilities, new ones before each of the last stages."""
        period = self.task.steps // STAGES
        optimizing = self._optimizer(self.model.parameters(), period)
        self._supervised(optimizing, None, period * (STAGES - ROUNDS))
        labeler = SingleHeadLabeler(self.model, soft=True)
        for _ in range(ROUNDS):
            labels = torch.cat([labeler.label(part.to(self.device).float() / 255).labels.cpu()
                                for part in self.pixels.split(500)])  # fmt: skip
            self._supervised(optimizing, labels, period)
        known = self.truth >= 0
        right = (labels.argmax(1) == self.truth)[known].float().mean().item()
        return right if known.any() else None

    def _amst(self) -> tuple[float, float | None]:
        """AMST over the pool; share accepted in the last round, and of these right."""
        period = self.task.steps // STAGES
        strong = StrongView(weak=self.weak)
        wrapper = AMSTWrapper(self.model, weak=self.weak, strong=strong, **self.arm.wrapper)
        optimizer, schedule = self._optimizer(
            wrapper.to(self.device).parameter_groups(self.task.learning_rate), period)
        training = SelfTraining(
            wrapper,
            TensorDataset(self.images.shots.pixels.float() / 255, self.images.shots.labels),
            TensorDataset(self.pixels.float() / 255, self.pool_labels),
            optimizer, scheduler=schedule, batch_size=self.task.batch_size,
            steps_per_epoch=period, truth=self.truth,
            rng_seed=self.rng_seed, **AMST_TRAINING | self.arm.training,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)
            report = training.run()[-1]
        self.steps = schedule.last_epoch
        self.model = wrapper.to_classifier()
        return report.accepted_share, report.accuracy


@torch.no_grad()
def predictions(classifier: nn.Module, pixels: Tensor, device: str = "cpu") -> Tensor:
    """Labels that a classifier gives to uint8 images, (N,) int64."""
    return torch.cat([classifier(part.to(device).float() / 255).argmax(1).cpu()
                      for part in pixels.split(500)])  # fmt: skip


def accuracy(classifier: nn.Module, images: Images, device: str = "cpu") -> float:
    """Share of right answers, averaged over the classes."""
    right = (predictions(classifier, images.pixels, device) == images.labels).float()
    return torch.stack([right[images.labels == c].mean()
                        for c in images.labels.unique()]).mean().item()  # fmt: skip
