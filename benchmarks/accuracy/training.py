"""How one arm of the accuracy study is trained.

Every arm takes the same number of optimizer steps with the same batch size, starts from the same
weights and sees the same labeled images. All arms but the first two also mirror and shift images
at random (the weak view): so the diffusion arms differ from "flip + crop" in their images alone,
and the classical ones are used as is usual. How much an image is mirrored and shifted is chosen on
validation, with "flip + crop": centred images lose by much of it. In arms with a pool, a third of
each batch are real images.
"""

import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from benchmarks.accuracy import classifiers, views
from benchmarks.accuracy.arms import Arm
from benchmarks.accuracy.classifiers import CLASSIFIERS
from benchmarks.accuracy.pools import Pool
from benchmarks.accuracy.tasks import Images, Split, Task
from benchmarks.accuracy.views import OPERATIONS
from dreamda_aug import amst
from dreamda_aug.amst import (
    CollapseWarning,
    Labeler,
    LabelPrior,
    MixedBatchSampler,
    RunPlan,
    SelfTraining,
    SingleHeadLabeler,
    StrongView,
    WeakView,
)
from dreamda_aug.method.seeding import derive_seed

# The learning rate comes down this many times; the pool is labeled before the last ROUNDS of them.
STAGES, ROUNDS = 4, 3
POOL_SHARE = 2  # images of the pool per real one in a batch
# One labeling round: with several, and a restart before each, the
# classifier had only the last quarter of the steps to learn, and lost 2 to 5 points on validation.
AMST_PLAN = RunPlan(ratio=(1, 1.75, 0.25), pretraining_epochs=STAGES - ROUNDS, epochs=ROUNDS,
                    relabel_every=ROUNDS)  # fmt: skip
# Another labeler needs no pretraining, and its labels never change.
LABELER_PLAN = replace(AMST_PLAN, pretraining_epochs=0, epochs=STAGES, relabel_every=STAGES)

# Where the label prior helps them, an eighth of the steps is enough for the heads, and as good as a
# quarter (results/accuracy/usps_amst.md). Then the learning rate comes down once more, to the end.
BRIEF = 8

# What decides a classifier's weights; a changed line means that runs are made anew.
AMST_FOLDER = Path(amst.__file__).parent
TRAINING_CODE = [Path(__file__), Path(classifiers.__file__), Path(views.__file__),
                 AMST_FOLDER / "views.py", AMST_FOLDER / "pool.py"]  # fmt: skip
LABELLING_CODE = sorted(AMST_FOLDER.glob("*.py"))


@dataclass(frozen=True)
class Outcome:
    """What one training run gave.

    Attributes:
        classifier: with its final weights.
        seconds: processor time of training.
        accepted: share of the pool that got a label in the last round; None without labeling.
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
        labeler: labels the pool of arms with ``"probe"`` or ``"prior"`` labels.
        label_prior: enters the votes of AMST's heads.
    """

    def __init__(
        self, task: Task, arm: Arm, images: Split, pool: Pool, truth: Tensor, rng_seed: int,
        weights: Path | None = None, device: str = "cpu", labeler: Labeler | None = None,
        label_prior: LabelPrior | None = None,
    ):
        self.task, self.arm, self.images, self.truth = task, arm, images, truth
        self.rng_seed, self.device, self.labeler = rng_seed, device, labeler
        self.label_prior = label_prior
        torch.manual_seed(derive_seed(rng_seed, "classifier"))
        self.model = CLASSIFIERS[task.classifier](task, weights).to(device)
        self.weak = WeakView(*arm.weak)
        self.pixels, self.pool_labels = pool.pixels, pool.seed_labels
        if arm.unlabeled:
            self.pixels = torch.cat([self.pixels, images.unlabeled.pixels])
            unknown = torch.full_like(images.unlabeled.labels, -1)
            self.pool_labels = torch.cat([self.pool_labels, unknown])
            self.truth = torch.cat([self.truth, images.unlabeled.labels])
        self.steps = 0

    def run(self) -> Outcome:
        """Train to the end."""
        began = time.process_time()
        torch.manual_seed(derive_seed(self.rng_seed, self.arm.name))
        accepted = right = None
        if self.arm.labels in ("amst", "probe", "prior"):
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

    def _optimizer(self, parameters, period: int, longer: int = 1):
        """AdamW with cosine decay over ``period`` steps, then over ``longer`` times as many, ..."""
        optimizer = torch.optim.AdamW(parameters, self.task.learning_rate, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, period, longer)
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
        return OPERATIONS[self.arm.view](images)

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
        plan = AMST_PLAN if self.arm.labels == "amst" else LABELER_PLAN
        period, longer = self.task.steps // STAGES, 1
        if self.arm.amst.brief:
            plan = replace(plan, epochs=BRIEF - 1, relabel_every=BRIEF - 1)
            period, longer = self.task.steps // BRIEF, BRIEF - 1
        options, strong = self.arm.amst, StrongView(weak=self.weak)
        if self.arm.view not in ("none", "weak"):
            # all heads that learn the strong view, the main one too, see the arm's own operation
            options = replace(options, views=replace(options.views, main="strong"))

            def strong(images: Tensor) -> Tensor:
                return OPERATIONS[self.arm.view](self.weak(images))

        wrapper = options.wrap(self.model, self.weak, strong)
        optimizer, schedule = self._optimizer(
            wrapper.to(self.device).parameter_groups(self.task.learning_rate), period, longer)
        plan = options.change(
            replace(plan, batch_size=self.task.batch_size, steps_per_epoch=period))
        training = SelfTraining(
            wrapper,
            TensorDataset(self.images.shots.pixels.float() / 255, self.images.shots.labels),
            TensorDataset(self.pixels.float() / 255, self.pool_labels),
            optimizer, scheduler=schedule, plan=plan, labeler=self.labeler,
            labeling=replace(options.labeling, label_prior=self.label_prior),
            truth=self.truth, rng_seed=self.rng_seed,
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
