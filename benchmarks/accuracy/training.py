"""How one arm of the accuracy study is trained, by `dreamda_aug.evaluation`.

All arms but the first two also mirror and shift images at random (the weak view): so the diffusion
arms differ from "flip + crop" in their images alone, and the classical ones are used as is usual.
How much an image is mirrored and shifted is chosen on validation, with "flip + crop": centred
images lose by much of it. In arms with a pool, a third of each batch are real images.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from benchmarks.accuracy import classifiers, views
from benchmarks.accuracy.arms import Arm
from benchmarks.accuracy.classifiers import CLASSIFIERS
from benchmarks.accuracy.pools import Pool
from benchmarks.accuracy.tasks import Split, Task
from benchmarks.accuracy.views import OPERATIONS
from dreamda_aug import amst, evaluation
from dreamda_aug.amst import Labeler, LabelPrior, SingleHeadLabeler, WeakView
from dreamda_aug.amst.views import View
from dreamda_aug.evaluation.training import AMST_PLAN, Trainer

# A single head's labels: the learning rate comes down this often, the last times with a pool.
STAGES, ROUNDS = 4, 3
# Another labeler needs no pretraining, and its labels never change.
LABELER_PLAN = replace(AMST_PLAN, pretraining_epochs=0, epochs=4, relabel_every=4)

# What decides a classifier's weights; a changed line means that runs are made anew.
AMST_FOLDER = Path(amst.__file__).parent
TRAINING_CODE = [Path(__file__), Path(classifiers.__file__), Path(views.__file__),
                 Path(evaluation.__file__).parent / "training.py",
                 AMST_FOLDER / "views.py", AMST_FOLDER / "batches.py"]  # fmt: skip
LABELLING_CODE = sorted(AMST_FOLDER.glob("*.py"))


@dataclass(frozen=True)
class Trained:
    """What training an arm gave.

    Attributes:
        classifier: with its final weights, in evaluation mode.
        steps: optimizer steps taken.
        seconds: processor time of training.
        accepted: share of the pool that got a label in the last round; None without labeling.
        labels_right: share of the accepted labels that are the true ones; None if unknown.
    """

    classifier: nn.Module
    steps: int
    seconds: float
    accepted: float | None = None
    labels_right: float | None = None


def train(
    task: Task, arm: Arm, images: Split, pool: Pool, truth: Tensor, rng_seed: int,
    weights: Path | None = None, device: str = "cpu", labeler: Labeler | None = None,
    label_prior: LabelPrior | None = None,
) -> Trained:
    """Train a fresh classifier.

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
    weak = WeakView(*arm.weak)
    trainer = Trainer(
        partial(CLASSIFIERS["frozen" if arm.frozen else task.classifier], task, weights),
        images.shots.pixels,
        images.shots.labels, task.classes, weak, task.steps, task.batch_size, task.learning_rate,
        rng_seed, device)  # fmt: skip
    pixels, labels = pool.pixels, truth if arm.labels == "oracle" else pool.seed_labels
    if arm.unlabeled:
        free = images.unlabeled
        pixels = torch.cat([pixels, free.pixels])
        labels = torch.cat([labels, torch.full_like(free.labels, -1)])
        truth = torch.cat([truth, free.labels])
    view, began = view_of(arm, weak), time.process_time()
    if arm.labels in ("amst", "probe", "prior"):
        training = trainer.self_training(
            arm.name, view, (pixels, labels),
            arm.amst.change(AMST_PLAN if arm.labels == "amst" else LABELER_PLAN),
            dict(arm.amst.options), labeler=labeler, label_prior=label_prior, truth=truth)
        report = training.reports[-1]
        return Trained(training.wrapper.model, training.scheduler.last_epoch,
                       time.process_time() - began, report.accepted_share, report.accuracy)
    if arm.labels == "soft":
        return _soft(trainer, arm, view, pixels, truth)
    made = (pixels, labels) if len(pixels) else None
    mix = getattr(v2, arm.mix)(num_classes=task.classes) if arm.mix else None
    if arm.replace is not None:
        versions = pixels.unflatten(0, (len(images.shots), -1))  # of each labeled image
        trainer = replace(trainer, pixels=torch.cat([images.shots.pixels[:, None], versions], 1))
        view, made = replaced(view, arm.replace), None
    elif arm.together:
        trainer = replace(trainer, pixels=torch.cat([images.shots.pixels, pixels]),
                          labels=torch.cat([images.shots.labels, labels]))  # fmt: skip
        made = None
    classifier = trainer.supervised(arm.name, view, made, mix)
    known = made is not None and bool((truth >= 0).all())
    return Trained(classifier, task.steps, time.process_time() - began,
                   labels_right=(labels == truth).float().mean().item() if known else None)


def view_of(arm: Arm, weak: View) -> View:
    """What an arm's images look like to the classifier."""
    if arm.view == "none":
        return lambda images: images
    return weak if arm.view == "weak" else lambda images: OPERATIONS[arm.view](weak(images))


def replaced(view: View, probability: float) -> View:
    """A view of images (B, K + 1, C, H, W): the first, or with a probability one behind it."""
    def pick(images: Tensor) -> Tensor:
        count, versions = images.shape[:2]
        behind = torch.randint(1, versions, (count,))
        chosen = torch.where(torch.rand(count) < probability, behind, 0)
        return view(images[torch.arange(count), chosen])

    return pick


def _soft(trainer: Trainer, arm: Arm, view: View, pixels: Tensor, truth: Tensor) -> Trained:
    """Self-training with one head's probabilities, new ones before each of the last stages."""
    period = trainer.train_steps // STAGES
    began, model = time.process_time(), trainer.fresh()
    with trainer.seeded(arm.name):
        schedule = trainer.schedule(model.parameters(), period)
        trainer.fit(model, schedule, view, period)
        labeler = SingleHeadLabeler(model, soft=True)
        for done in range(1, STAGES):
            labels = torch.cat([labeler.label(part.to(trainer.device).float() / 255).labels.cpu()
                                for part in pixels.split(500)])  # fmt: skip
            trainer.fit(model, schedule, view, period, (pixels, labels), done=done * period)
    known = truth >= 0
    right = (labels.argmax(1) == truth)[known].float().mean().item()
    return Trained(model.eval(), schedule.last_epoch, time.process_time() - began,
                   labels_right=right if known.any() else None)  # fmt: skip
