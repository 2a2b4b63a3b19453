"""The three stages of AMST over a pool of images: pretrain, label, train, label again."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from dreamda_aug.amst.averaging import WeightAverage
from dreamda_aug.amst.bagging import draw_head_weights
from dreamda_aug.amst.checkpoint import read_checkpoint, write_checkpoint
from dreamda_aug.amst.checks import check_heads_learn, check_sets
from dreamda_aug.amst.labelers import Labeler
from dreamda_aug.amst.labeling import LabelingRule, PoolLabeling
from dreamda_aug.amst.loading import BatchLoading
from dreamda_aug.amst.losses import AMSTLosses, PseudoLabels
from dreamda_aug.amst.old_keywords import filled, sort_old_keywords
from dreamda_aug.amst.plan import RunPlan
from dreamda_aug.amst.pool import EpochDataset, JointDataset, MixedBatch, SizedDataset
from dreamda_aug.amst.processes import find_wrapper
from dreamda_aug.amst.randomness import epoch_seed, seeded
from dreamda_aug.amst.report import EpochRecord, RoundReport, make_report, warn_of_collapse
from dreamda_aug.amst.wrapper import AMSTWrapper
from dreamda_aug.progress import bar, track

logger = logging.getLogger(__name__)

_OLD_KEYWORDS: dict[str, tuple[str, type, str]] = {
    field: (argument, kind, field)
    for argument, kind in (("plan", RunPlan), ("labeling", LabelingRule))
    for field in kind.__dataclass_fields__
}


class SelfTraining:
    """Runs AMST's stages over a labeled set and a pool, with your optimizer and scheduler.

    ``run`` does everything; its parts, ``loader``, ``label_pool`` and ``train_epoch``, can be
    called in a loop of your own. All randomness of an epoch follows from ``rng_seed`` and the
    number of the epoch. A run that is interrupted between two epochs and loaded again therefore
    ends with the same weights as one that is not. This covers torch's randomness alone, not
    transforms that use numpy or ``random``.

    Args:
        wrapper: the classifier in its ``AMSTWrapper``, on the device to train on; or this
            wrapper in ``DistributedDataParallel(…, find_unused_parameters=True)``. Every process
            then draws batches of its own, all label the whole pool alike, and process 0 writes
            checkpoints.
        labeled: items (image, target): tensors (C, H, W) as the classifier takes them, without
            augmentation (the views are drawn later), and class indices or soft labels.
        pool: items image or (image, seed label): synthetic images, unlabeled real ones (seed
            label −1 or None), or both. An index must always give the same image, unless the plan
            says ``online``. A pool with a method ``set_epoch`` then gets the number of each
            epoch.
        optimizer: over ``wrapper.parameter_groups(…)``.
        scheduler: stepped after every optimizer step, if given.
        plan: the stages, and what a batch holds; None: ``RunPlan()``.
        labeler: labels the pool; None: the wrapper's auxiliary heads.
        labeling: how the heads' votes are prepared, and when to warn; None:
            ``LabelingRule()``.
        truth: true labels of the pool where known, −1 elsewhere; used in reports alone.
        num_workers: of the data loaders.
        rng_seed: all randomness of the run follows from it.
        old_keywords: fields of ``plan`` and ``labeling`` by themselves, as in version 0.1, such
            as ``epochs``. They work, with a ``DeprecationWarning``.

    Attributes:
        wrapper: the ``AMSTWrapper``, without what it was wrapped in.
        epoch: epochs done, of both stages.
        steps_per_epoch: optimizer steps of an epoch.
        reports: one ``RoundReport`` per labeling round; with ``online`` one per epoch.
        pseudo_labels: those of the last round, on the CPU; None before the first.

    Raises:
        ValueError: a set is empty, ``truth`` or the shares do not fit, alignment meets another
            labeler, or DDP does not look for unused parameters.
        TypeError: ``wrapper`` holds no ``AMSTWrapper``; or an unknown keyword.

    Source: DreamDA, arXiv:2403.12803, method figure.
    """

    def __init__(
        self,
        wrapper: AMSTWrapper | DistributedDataParallel,
        labeled: SizedDataset,
        pool: SizedDataset,
        optimizer: torch.optim.Optimizer,
        *,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        plan: RunPlan | None = None,
        labeler: Labeler | None = None,
        labeling: LabelingRule | None = None,
        truth: Sequence[int] | Tensor | None = None,
        num_workers: int = 0,
        rng_seed: int = 0,
        **old_keywords: Any,
    ) -> None:
        changes = sort_old_keywords("SelfTraining", old_keywords, _OLD_KEYWORDS)
        self.plan = filled("plan", plan, RunPlan, changes["plan"])
        rule = filled("labeling", labeling, LabelingRule, changes["labeling"])
        check_sets(len(labeled), len(pool), truth)
        self.wrapper, self._processes = find_wrapper(wrapper)
        # Losses go through what the wrapper is wrapped in, which averages gradients or compiles.
        self._outer: nn.Module = wrapper
        self.optimizer, self.scheduler = optimizer, scheduler
        self.data = JointDataset(labeled, pool)
        self.steps_per_epoch = self.plan.steps_for(len(pool), self._processes.count)
        self._initial = copy.deepcopy(self.wrapper.state_dict()) if self.plan.restart else None
        self.labeling = PoolLabeling(self.wrapper, labeler, rule)
        decay = self.plan.ema_decay
        self._teacher = None if decay is None else WeightAverage(self.wrapper, decay)
        self._loading = BatchLoading(self.data, self.plan, self.steps_per_epoch, num_workers)
        self._head_weights = draw_head_weights(
            labeled, len(self.wrapper.auxiliary_heads), self.plan.head_share,
            epoch_seed(rng_seed, 0, "heads"))  # fmt: skip
        self.truth = None if truth is None else torch.as_tensor(truth)
        self.rng_seed = rng_seed
        self.epoch = 0
        self.reports: list[RoundReport] = []
        self.pseudo_labels: PseudoLabels | None = None

    @property
    def labeler(self) -> Labeler:
        """Labels the pool; may be replaced between epochs."""
        return self.labeling.labeler

    @labeler.setter
    def labeler(self, labeler: Labeler) -> None:
        self.labeling.labeler = labeler

    @property
    def stage(self) -> Literal["pretraining", "training", "done"]:
        """The stage of the coming epoch."""
        if self.epoch < self.plan.pretraining_epochs:
            return "pretraining"
        return "training" if self.training_epoch < self.plan.epochs else "done"

    @property
    def training_epoch(self) -> int:
        """Epochs of the training stage that are done; 0 during pretraining."""
        return max(0, self.epoch - self.plan.pretraining_epochs)

    def run(self, checkpoint: str | os.PathLike[str] | None = None) -> list[RoundReport]:
        """Train all epochs that remain, and return the reports.

        With ``RunPlan.ema_decay`` the wrapper has the averaged weights at the end.

        Args:
            checkpoint: a file that is written after every epoch. Where it exists already, the
                run continues from it.
        """
        if checkpoint is not None and Path(checkpoint).exists():
            self.load(checkpoint)
        whole, first = self.plan.pretraining_epochs + self.plan.epochs, self._processes.rank == 0
        with bar("self-training", whole - self.epoch, "epochs", shown=first) as shown:
            while self.stage != "done":
                self.train_epoch()
                shown.update()
                if checkpoint is not None and first:
                    self.save(checkpoint)
        if self._teacher is not None:
            self._teacher.copy_to_module()
        return self.reports

    def train_epoch(self) -> dict[str, float]:
        """Train the coming epoch, after a labeling round where one is due.

        Returns:
            The mean over the steps of every loss term.

        Raises:
            ValueError: all epochs are done, or a restart would leave the labeling heads
                untrained.
        """
        stage = self.stage
        if stage == "done":
            raise ValueError(
                f"all {self.epoch} epochs are done; to go on, give the plan more: "
                "training.plan = dataclasses.replace(training.plan, epochs=…)."
            )
        if stage == "training" and not self.plan.online:
            self._label_if_due()
        record = EpochRecord(keep_labels=self.plan.online)
        self._outer.train()
        with seeded(self._seed(self._processes.role("train")), self._device):
            for batch in track(self.loader(), stage, shown=self._processes.rank == 0):
                batch = batch.to(self._device)
                losses = self._losses(batch)
                self._optimize(losses if isinstance(losses, Tensor) else losses.total)
                record.add(losses, batch)
        labeled_now = record.labeled()
        if labeled_now is not None:
            self._add_report(*labeled_now)
        self.epoch += 1
        logger.info("epoch %d (%s): %s", self.epoch, stage, record.means())
        return record.means()

    def loader(self) -> DataLoader[Any]:
        """Batches of the coming epoch, ``MixedBatch``: real images alone in pretraining, else
        real, accepted and unlabeled ones at the plan's ratio."""
        seeds = self._seed(self._processes.role("batches")), self._seed("workers")
        if self.stage == "pretraining":
            return self._loading.real(*seeds)
        if not self.plan.online:
            labels = self.pseudo_labels
            return self._loading.mixed(None if labels is None else labels.mask, *seeds)
        if isinstance(self.data.pool, EpochDataset):
            self.data.pool.set_epoch(self.epoch)
        return self._loading.mixed(None, *seeds)

    def label_pool(self) -> RoundReport:
        """Label the whole pool and rebuild the accepted set from nothing.

        Warns:
            CollapseWarning: nothing was accepted, or the accepted classes are lopsided.
        """
        batches = self._loading.whole_pool(self._seed("workers"))
        self._processes.share_buffers()
        with seeded(self._seed("label"), self._device), self._labeling_weights():
            labels, seed_labels = self.labeling.label_pool(batches, self._device)
        self.pseudo_labels = labels
        return self._add_report(labels, torch.arange(len(labels)), seed_labels)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that a resumed run needs; the file is never half written."""
        labels = self.pseudo_labels
        state = {
            "epoch": self.epoch,
            "wrapper": self.wrapper.state_dict(),
            "initial": self._initial,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "pseudo_labels": None if labels is None else vars(labels),
            "average": self.labeling.average,
            "teacher": None if self._teacher is None else self._teacher.weights,
            "teacher_steps": 0 if self._teacher is None else self._teacher.steps,
            "reports": [asdict(report) for report in self.reports],
        }
        write_checkpoint(path, self._settings(), state)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continue from what ``save`` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another kind of file, damaged, or written with other settings.
        """
        state = read_checkpoint(path, self._settings())
        self.wrapper.load_state_dict(state["wrapper"])
        self._initial = state["initial"]
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        labels = state["pseudo_labels"]
        self.pseudo_labels = None if labels is None else PseudoLabels(**labels)
        self.labeling.average = state["average"]
        if self._teacher is not None:
            self._teacher.load(state["teacher"], state["teacher_steps"])
        self.reports = [RoundReport(**report) for report in state["reports"]]
        self.epoch = state["epoch"]

    def _label_if_due(self) -> None:
        """Label the pool before every ``relabel_every``-th training epoch, and restart after."""
        done = self.training_epoch
        if done % self.plan.relabel_every:
            return
        if self.plan.restart and done and self.labeler is self.wrapper:
            check_heads_learn(self.wrapper.weights.auxiliary)
        self.label_pool()
        if self._initial is not None:
            self.wrapper.load_state_dict(self._initial)
            self.optimizer.state.clear()
            if self._teacher is not None:
                self._teacher.restart()

    def _losses(self, batch: MixedBatch) -> AMSTLosses | Tensor:
        """The loss of one batch in the stage that is due, through ``forward``."""
        forward: Callable[..., AMSTLosses | Tensor] = self._outer
        real, targets, synthetic = batch.real, batch.targets, batch.synthetic
        weights = None
        if self._head_weights is not None:
            weights = self._head_weights[:, batch.real_indices.cpu()].to(self._device)
        if self.stage == "pretraining":
            return forward(real, targets, stage="pretraining", head_weights=weights)
        if len(synthetic) == 0:
            labels = None
        elif not self.plan.online and self.pseudo_labels is not None:
            labels = self.pseudo_labels[batch.indices.cpu()].to(self._device)
        else:
            with self._labeling_weights():
                labels = self.labeling.label(synthetic, batch.seed_labels)
        return forward(real, targets, synthetic, pseudo_labels=labels, stage="training",
                       head_weights=weights)

    def _optimize(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        if self._teacher is not None:
            self._teacher.update()

    def _labeling_weights(self) -> AbstractContextManager[None]:
        """Within it, the wrapper has the weights that label."""
        return nullcontext() if self._teacher is None else self._teacher.in_use()

    def _add_report(
        self, labels: PseudoLabels, indices: Tensor, seed_labels: Tensor
    ) -> RoundReport:
        truth = None if self.truth is None else self.truth[indices]
        classes = self.wrapper.num_classes
        report = make_report(labels, self.training_epoch, classes, seed_labels, truth)
        self.reports.append(report)
        logger.info("%s", report)
        shares = self.labeling.expected_shares.tolist()
        warn_of_collapse(report, shares, self.labeling.rule.collapse_factor)
        return report

    @property
    def _device(self) -> torch.device:
        return next(self.wrapper.parameters()).device

    def _seed(self, role: str) -> int:
        return epoch_seed(self.rng_seed, self.epoch, role)

    def _settings(self) -> dict[str, object]:
        """What must be the same for a run to go on as if nothing had happened."""
        names = (
            "batch_size", "ratio", "pretraining_epochs", "relabel_every", "restart", "seed_vote",
            "online", "distribution_alignment", "ema_decay", "head_share",
        )  # fmt: skip
        values = vars(self.plan) | vars(self.labeling.rule)
        prior = self.labeling.rule.label_prior
        return {name: values[name] for name in names} | {
            "label_prior": None if prior is None else prior.probabilities.tolist(),
            "steps_per_epoch": self.steps_per_epoch,
            "rng_seed": self.rng_seed,
            "labeled": len(self.data.labeled),
            "pool": len(self.data.pool),
            "processes": self._processes.count,
        }
