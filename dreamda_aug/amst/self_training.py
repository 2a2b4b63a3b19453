"""The three stages of AMST over a pool of images: pretrain, label, train, label again."""

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from dreamda_aug.amst.batches import BatchLoading, MixedBatch, SizedDataset
from dreamda_aug.amst.label_prior import LabelPrior
from dreamda_aug.amst.labelers import Labeler
from dreamda_aug.amst.labeling import PoolLabeling, RoundReport, make_report, warn_of_collapse
from dreamda_aug.amst.losses import AMSTLosses, PseudoLabels
from dreamda_aug.amst.rules import RunPlan
from dreamda_aug.amst.running import (
    epoch_seed,
    find_wrapper,
    read_checkpoint,
    seeded,
    write_checkpoint,
)
from dreamda_aug.amst.wrapper import AMSTWrapper
from dreamda_aug.progress import bar, track

logger = logging.getLogger(__name__)


@runtime_checkable
class EpochDataset(Protocol):
    """A dataset whose items change from epoch to epoch."""

    def set_epoch(self, epoch: int, /) -> Any: ...


class SelfTraining:
    """Runs AMST's stages over a labeled set and a pool, with your optimizer and scheduler.

    ``run`` does everything; its parts, ``loader``, ``label_pool`` and ``train_epoch``, can be
    called in a loop of your own. All randomness of an epoch follows from ``rng_seed`` and the
    number of the epoch, so a run that is interrupted between two epochs and loaded again ends with
    the same weights. This covers torch's randomness alone, not numpy's or ``random``'s.

    Args:
        wrapper: the classifier in its ``AMSTWrapper``, on the device to train on; or this
            wrapper in ``DistributedDataParallel(…, find_unused_parameters=True)``. Every process
            then draws batches of its own, all label the whole pool alike, and process 0 writes
            checkpoints.
        labeled: items (image, target): tensors (C, H, W) as the classifier takes them, without
            augmentation (the views are drawn later), and class indices, or float tensors
            (classes,) as soft labels.
        pool: items image or (image, seed label): synthetic images, unlabeled real ones (seed
            label −1 or None), or both. An index must always give the same image, unless the plan
            is ``online``. A pool with a method ``set_epoch`` then gets the number of each epoch.
        optimizer: over ``wrapper.parameter_groups(…)``.
        scheduler: stepped after every optimizer step, if given.
        plan: the stages, and what a batch holds, or None for ``RunPlan()``. With a ``label_prior``
            take ``AMST_PLUS``, which our study found best.
        labeler: labels the pool, or None to label by the wrapper's auxiliary heads.
        label_prior: how often the class asked for (the seed label) is the class that came out. It
            enters each head's probabilities by Bayes' rule before they vote [ours].
        truth: true labels of the pool where known, −1 elsewhere; used in reports alone.
        num_workers: of the data loaders.
        rng_seed: all randomness of the run follows from it.

    Attributes:
        wrapper: the ``AMSTWrapper``, without what it was wrapped in.
        labeling: labels the pool; its ``labeler`` may be replaced between epochs.
        epoch: epochs done, of both stages.
        steps_per_epoch: optimizer steps of an epoch.
        reports: one ``RoundReport`` per labeling round; with ``online`` one per epoch.
        pseudo_labels: those of the last round, on the CPU; None before the first.

    Raises:
        ValueError: a set is empty, ``truth`` or the prior do not fit, what prepares the heads'
            votes meets another labeler, or DDP does not look for unused parameters.
        TypeError: ``wrapper`` holds no ``AMSTWrapper``.

    Source: DreamDA, arXiv:2403.12803, method figure.
    """

    def __init__(
        self, wrapper: AMSTWrapper | DistributedDataParallel, labeled: SizedDataset,
        pool: SizedDataset, optimizer: torch.optim.Optimizer, *,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        plan: RunPlan | None = None, labeler: Labeler | None = None,
        label_prior: LabelPrior | None = None, truth: Sequence[int] | Tensor | None = None,
        num_workers: int = 0, rng_seed: int = 0,
    ) -> None:
        if not len(labeled) or not len(pool):
            raise ValueError(
                f"labeled and pool must hold images, got {len(labeled)} and {len(pool)}.")
        if truth is not None and len(truth) != len(pool):
            raise ValueError(f"truth must have {len(pool)} labels, got {len(truth)}.")
        self.wrapper, self._processes = find_wrapper(wrapper)
        # Losses go through what the wrapper is wrapped in, which averages gradients or compiles.
        self._outer: nn.Module = wrapper
        self.plan = RunPlan() if plan is None else plan
        self.optimizer, self.scheduler = optimizer, scheduler
        self.data = BatchLoading(labeled, pool, self.wrapper.num_classes, self.plan,
                                 self._processes.count, num_workers)
        self.steps_per_epoch = self.data.steps
        self._average = None
        labels = self.wrapper
        if self.plan.ema_decay is not None:
            self._average = _averaged(self.wrapper, self.plan.ema_decay)
            labels = cast(AMSTWrapper, self._average.module)
        self.labeling = PoolLabeling(labels, labeler, self.plan, label_prior)
        self.truth = None if truth is None else torch.as_tensor(truth)
        self.rng_seed, self.epoch = rng_seed, 0
        self.reports: list[RoundReport] = []
        self.pseudo_labels: PseudoLabels | None = None

    @property
    def training_epoch(self) -> int:
        """Epochs of the training stage that are done; 0 during pretraining."""
        return max(0, self.epoch - self.plan.pretraining_epochs)

    @property
    def stage(self) -> Literal["pretraining", "training", "done"]:
        """The stage of the coming epoch."""
        if self.epoch < self.plan.pretraining_epochs:
            return "pretraining"
        return "training" if self.training_epoch < self.plan.epochs else "done"

    def run(self, checkpoint: str | os.PathLike[str] | None = None) -> list[RoundReport]:
        """Train all epochs that remain, and return the reports.

        With ``RunPlan.ema_decay`` the wrapper has the averaged weights at the end.

        Args:
            checkpoint: a file that is written after every epoch. Where it exists already, the
                run continues from it; errors as in ``load``.
        """
        if checkpoint is not None and Path(checkpoint).exists():
            self.load(checkpoint)
        total, first = self.plan.pretraining_epochs + self.plan.epochs, self._processes.rank == 0
        with bar("self-training", total - self.epoch, "epochs", shown=first) as shown:
            while self.stage != "done":
                self.train_epoch()
                shown.update()
                if checkpoint is not None and first:
                    self.save(checkpoint)
        if self._average is not None:
            self.wrapper.load_state_dict(self._average.module.state_dict())
        return self.reports

    def train_epoch(self) -> dict[str, float]:
        """Train the coming epoch, after a labeling round where one is due.

        Returns the mean over the steps of every loss term; raises ``ValueError`` when all epochs
        are done.
        """
        stage = self.stage
        if stage == "done":
            raise ValueError(
                f"all {self.epoch} epochs are done; to train longer, give the plan more: "
                "training.plan = dataclasses.replace(training.plan, epochs=…).")
        due = self.training_epoch % self.plan.relabel_every == 0
        if stage == "training" and due and not self.plan.online:
            self.label_pool()
        sums: dict[str, float] = defaultdict(float)
        online: list[tuple[PseudoLabels, Tensor, Tensor]] = []
        self._outer.train()
        with seeded(self._seed(self._processes.role("train")), self._device):
            for batch in track(self.loader(), stage, shown=self._processes.rank == 0):
                batch = batch.to(self._device)
                losses = self._losses(batch)
                self._optimize(losses if isinstance(losses, Tensor) else losses.total)
                terms = ({"total": losses.item()} if isinstance(losses, Tensor)
                         else losses.as_dict())
                for name, value in terms.items():
                    sums[name] += value / self.steps_per_epoch
                if self.plan.online and isinstance(losses, AMSTLosses) and losses.pseudo_labels:
                    online.append((losses.pseudo_labels.to("cpu"), batch.indices.cpu(),
                                   batch.seed_labels.cpu()))
        if online:
            labels, indices, seed_labels = zip(*online, strict=True)
            self._add_report(PseudoLabels.concatenate(labels), torch.cat(indices),
                             torch.cat(seed_labels))
        self.epoch += 1
        logger.info("epoch %d (%s): %s", self.epoch, stage, dict(sums))
        return dict(sums)

    def loader(self) -> DataLoader[Any]:
        """Batches of the coming epoch, ``MixedBatch``: real images alone in pretraining, else
        real, accepted and unlabeled ones at the plan's ratio."""
        seeds = self._seed(self._processes.role("batches")), self._seed("workers")
        if self.stage == "pretraining":
            return self.data.real(*seeds)
        if self.plan.online and isinstance(self.data.pool, EpochDataset):
            self.data.pool.set_epoch(self.epoch)
        known = None if self.plan.online else self.pseudo_labels
        return self.data.mixed(None if known is None else known.mask, *seeds)

    def label_pool(self) -> RoundReport:
        """Label the whole pool and rebuild the accepted set from nothing.

        Warns:
            CollapseWarning: nothing was accepted, or the accepted classes are lopsided.
        """
        batches = self.data.whole_pool(self._seed("workers"))
        self._processes.share_buffers(self.labeling.wrapper)
        with seeded(self._seed("label"), self._device):
            labels, seed_labels = self.labeling.label_pool(batches, self._device)
        self.pseudo_labels = labels
        return self._add_report(labels, torch.arange(len(labels)), seed_labels)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that a resumed run needs; the file is never half written."""
        labels = self.pseudo_labels
        state = {
            "epoch": self.epoch,
            "wrapper": self.wrapper.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "pseudo_labels": None if labels is None else vars(labels),
            "class_average": self.labeling.average,
            "weight_average": None if self._average is None else self._average.state_dict(),
            "reports": [asdict(report) for report in self.reports],
        }
        write_checkpoint(path, self._settings(), state)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continue from what ``save`` wrote.

        Raises:
            FileNotFoundError: no such file.
            StorageError: another kind of file, or a damaged one.
            ValueError: written with other settings.
        """
        state = read_checkpoint(path, self._settings())
        self.wrapper.load_state_dict(state["wrapper"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        labels = state["pseudo_labels"]
        self.pseudo_labels = None if labels is None else PseudoLabels(**labels)
        self.labeling.average = state["class_average"]
        if self._average is not None:
            self._average.load_state_dict(state["weight_average"])
        self.reports = [RoundReport(**report) for report in state["reports"]]
        self.epoch = state["epoch"]

    def _losses(self, batch: MixedBatch) -> AMSTLosses | Tensor:
        """The loss of one batch in the stage that is due, through ``forward``."""
        forward: Callable[..., AMSTLosses | Tensor] = self._outer
        if self.stage == "pretraining":
            return forward(batch.real, batch.targets, stage="pretraining")
        if len(batch.synthetic) == 0:
            labels = None
        elif not self.plan.online and self.pseudo_labels is not None:
            labels = self.pseudo_labels[batch.indices.cpu()].to(self._device)
        else:
            labels = self.labeling.label(batch.synthetic, batch.seed_labels)
        return forward(batch.real, batch.targets, batch.synthetic, pseudo_labels=labels,
                       stage="training")

    def _optimize(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self._average is not None:
            self._average.update_parameters(self.wrapper)

    def _add_report(
        self, labels: PseudoLabels, indices: Tensor, seed_labels: Tensor
    ) -> RoundReport:
        truth = None if self.truth is None else self.truth[indices]
        report = make_report(labels, self.training_epoch, self.wrapper.num_classes, seed_labels,
                             truth)
        self.reports.append(report)
        logger.info("%s", report)
        warn_of_collapse(report)
        return report

    @property
    def _device(self) -> torch.device:
        return next(self.wrapper.parameters()).device

    def _seed(self, role: str) -> int:
        return epoch_seed(self.rng_seed, self.epoch, role)

    def _settings(self) -> dict[str, object]:
        """What must be the same for a run to continue as if nothing had happened."""
        # the run may be given more epochs
        plan = {name: value for name, value in asdict(self.plan).items() if name != "epochs"}
        prior = self.labeling.label_prior
        return plan | {
            "label_prior": None if prior is None else prior.probabilities.tolist(),
            "steps_per_epoch": self.steps_per_epoch, "rng_seed": self.rng_seed,
            "labeled": len(self.data.labeled), "pool": len(self.data.pool),
            "processes": self._processes.count}


def _averaged(wrapper: AMSTWrapper, decay: float) -> AveragedModel:
    """The moving average of a wrapper's weights and buffers, with Mean Teacher's ramp-up.

    Source: Tarvainen and Valpola 2017, arXiv:1703.01780.
    """
    def average(kept: Tensor, now: Tensor, count: Tensor | int) -> Tensor:
        # the first steps count more, so that random weights are soon forgotten
        share = max(1 - decay, 1 / (float(count) + 1))
        return kept.lerp(now, share) if now.is_floating_point() else now

    return AveragedModel(wrapper, avg_fn=average, use_buffers=True)
