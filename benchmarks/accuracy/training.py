"""How one arm of the accuracy study is trained, by `dreamda_aug.evaluation`.

All arms but the first two also mirror and shift images at random (the weak view): so the diffusion
arms differ from "flip + crop" in their images alone, and the classical ones are used as is usual.
How much an image is mirrored and shifted is chosen on validation, with "flip + crop": centred
images lose by much of it. In arms with a pool, a third of each batch are real images.
"""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
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
from dreamda_aug.evaluation.training import AMST_PLAN, Trained, Trainer
from dreamda_aug.evaluation.training import Pool as Labeled

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
    made = Labeled(pool.pixels, pool.seed_labels, truth)
    if arm.unlabeled:
        free = images.unlabeled
        made = Labeled(torch.cat([made.pixels, free.pixels]),
                       torch.cat([made.labels, torch.full_like(free.labels, -1)]),
                       torch.cat([truth, free.labels]))  # fmt: skip
    view = view_of(arm, weak)
    if arm.labels in ("amst", "probe", "prior"):
        return trainer.self_training(
            arm.name, view, made, labeler=labeler, label_prior=label_prior,
            plan=arm.amst.change(AMST_PLAN if arm.labels == "amst" else LABELER_PLAN),
            options=dict(arm.amst.options))
    if arm.labels == "soft":
        return _soft(trainer, arm, view, made)
    if arm.replace is not None:
        versions = pool.pixels.unflatten(0, (len(images.shots), -1))  # of each labeled image
        trainer = replace(trainer, pixels=torch.cat([images.shots.pixels[:, None], versions], 1))
        return trainer.supervised(arm.name, replaced(view, arm.replace))
    if arm.together:
        trainer = replace(trainer, pixels=torch.cat([images.shots.pixels, pool.pixels]),
                          labels=torch.cat([images.shots.labels, pool.seed_labels]))  # fmt: skip
        return trainer.supervised(arm.name, view)
    if arm.labels == "oracle":
        made = replace(made, labels=truth)
    mix = getattr(v2, arm.mix)(num_classes=task.classes) if arm.mix else None
    return trainer.supervised(arm.name, view, made if len(made.pixels) else None, mix)


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


def _soft(trainer: Trainer, arm: Arm, view: View, pool: Labeled) -> Trained:
    """Self-training with one head's probabilities, new ones before each of the last stages."""
    period = trainer.train_steps // STAGES
    began, model = time.process_time(), trainer.fresh()
    with trainer.seeded(arm.name):
        optimizing = trainer.optimizer(model.parameters(), period)
        trainer.fit(model, optimizing, view, period)
        labeler = SingleHeadLabeler(model, soft=True)
        for done in range(1, STAGES):
            labels = torch.cat([labeler.label(part.to(trainer.device).float() / 255).labels.cpu()
                                for part in pool.pixels.split(500)])  # fmt: skip
            trainer.fit(model, optimizing, view, period, replace(pool, labels=labels),
                        done=done * period)  # fmt: skip
    known = pool.truth >= 0
    right = (labels.argmax(1) == pool.truth)[known].float().mean().item()
    return Trained(model.eval(), STAGES * period, time.process_time() - began,
                   labels_right=right if known.any() else None)  # fmt: skip
