"""The three stages of AMST over a pool of images: pretrain, label, train, label again."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from dreamda_aug.amst.checkpoint import read_checkpoint, write_checkpoint
from dreamda_aug.amst.checks import check_heads_learn, check_least, check_run, check_shares
from dreamda_aug.amst.labelers import Labeler
from dreamda_aug.amst.labelling import PoolLabelling
from dreamda_aug.amst.losses import AMSTLosses, PseudoLabels
from dreamda_aug.amst.pool import JointDataset, MixedBatch, MixedBatchSampler, batch_counts, collate
from dreamda_aug.amst.randomness import epoch_seed, seeded
from dreamda_aug.amst.report import RoundReport, make_report, warn_of_collapse
from dreamda_aug.amst.wrapper import AMSTWrapper

logger = logging.getLogger(__name__)


class SelfTraining:
    """Runs AMST's stages over a labelled set and a pool; a helper, not a trainer.

    An epoch is ``steps_per_epoch`` steps of your optimizer. ``run`` does everything; its parts,
    ``loader``, ``label_pool`` and ``train_epoch``, can be called in a loop of your own. All
    randomness of an epoch comes from ``rng_seed`` and its number (torch's alone: transforms that
    use numpy or ``random`` are not covered), so a run that was interrupted between two epochs
    and loaded again ends with the weights of one that was not.

    Args:
        wrapper: the classifier in its wrapper, on the device to train on.
        labelled: items (image, target): tensors (C, H, W) as the classifier takes them, without
            augmentation (the views are made inside), and class indices or soft labels.
        pool: items image or (image, seed label): synthetic images, unlabelled real ones (seed
            label −1 or None), or both. In pool mode an index must always give the same image.
        optimizer: over ``wrapper.parameter_groups(…)``.
        scheduler: stepped after every optimizer step, if given.
        batch_size: images per batch, ≥ 2.
        ratio: real : accepted : unlabelled images in a batch [ours]. Where one of the last two is
            empty, the other takes its place.
        steps_per_epoch: None: as many as it takes to go through the pool once.
        pretraining_epochs, epochs: length of the first and of the third stage.
        relabel_every: the pool is labelled, and the accepted set rebuilt from nothing, before
            every so many epochs [ours].
        restart: after every labelling round go back to the weights that the wrapper came with
            (random or pretrained), so that wrong labels of a round do not live on in the weights;
            each round must then be long enough to train a classifier. In our ablations more of
            the accepted labels were right and accuracy was lower: by 1 point on digits, by 2 to 5
            with rounds of 160 steps [Curriculum Labeling, arXiv:2001.06001; off by default].
        labeler: who labels; by default the wrapper's auxiliary heads.
        seed_vote: the seed label is a further vote [ours].
        in_batch: label every batch as it comes, for pools that are made afresh every epoch; a
            pool with ``set_epoch`` is told the epoch. The batch then is real : (accepted +
            unlabelled).
        distribution_alignment: scale the heads' probabilities so that the predicted classes
            match ``expected_shares`` on average, before they vote [ReMixMatch].
        expected_shares: share of each class expected in the pool; None: all equal.
        collapse_factor: warn if a class exceeds its expected share so many times [ours].
        truth: true labels of the pool where known, −1 elsewhere; used in reports alone.
        num_workers: of the data loaders.
        rng_seed: everything random follows from it.

    Attributes:
        epoch: epochs done, of both stages.
        reports: one ``RoundReport`` per labelling round (in-batch mode: per epoch).
        pseudo_labels: those of the last round, on the CPU; None before the first.

    Raises:
        ValueError: an option is out of range, or the sets are empty.

    Source: DreamDA, arXiv:2403.12803, method figure.
    """

    def __init__(
        self,
        wrapper: AMSTWrapper,
        labelled: Dataset,
        pool: Dataset,
        optimizer: torch.optim.Optimizer,
        *,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        batch_size: int = 64,
        ratio: tuple[float, float, float] = (1, 1, 1),
        steps_per_epoch: int | None = None,
        pretraining_epochs: int = 1,
        epochs: int = 3,
        relabel_every: int = 1,
        restart: bool = False,
        labeler: Labeler | None = None,
        seed_vote: bool = False,
        in_batch: bool = False,
        distribution_alignment: bool = False,
        expected_shares: Sequence[float] | None = None,
        collapse_factor: float = 3.0,
        truth: Sequence[int] | Tensor | None = None,
        num_workers: int = 0,
        rng_seed: int = 0,
    ) -> None:
        check_run(len(labelled), len(pool), truth, collapse_factor, restart, in_batch)
        check_least("steps_per_epoch", steps_per_epoch, 1)
        check_least("pretraining_epochs", pretraining_epochs, 0)
        check_least("epochs", epochs, 0)
        check_least("relabel_every", relabel_every, 1)
        self.wrapper, self.optimizer, self.scheduler = wrapper, optimizer, scheduler
        self.data = JointDataset(labelled, pool)
        self.batch_size, self.ratio = batch_size, tuple(ratio)
        of_pool = sum(batch_counts(batch_size, self.ratio, [1, 1, 1])[1:])
        self.steps_per_epoch = steps_per_epoch or math.ceil(len(pool) / max(1, of_pool))
        self.pretraining_epochs, self.epochs = pretraining_epochs, epochs
        self.relabel_every, self.restart, self.in_batch = relabel_every, restart, in_batch
        self._initial = copy.deepcopy(wrapper.state_dict()) if restart else None
        shares = check_shares(expected_shares, wrapper.num_classes)
        self.labelling = PoolLabelling(wrapper, labeler, seed_vote, distribution_alignment, shares)
        self.collapse_factor, self.num_workers = collapse_factor, num_workers
        self.truth = None if truth is None else torch.as_tensor(truth)
        self.rng_seed = rng_seed
        self.epoch = 0
        self.reports: list[RoundReport] = []
        self.pseudo_labels: PseudoLabels | None = None

    @property
    def labeler(self) -> Labeler:
        """Who labels the pool; may be exchanged between epochs."""
        return self.labelling.labeler

    @labeler.setter
    def labeler(self, labeler: Labeler) -> None:
        self.labelling.labeler = labeler

    @property
    def stage(self) -> str:
        """What the next epoch is: ``"pretraining"``, ``"training"`` or ``"done"``."""
        if self.epoch < self.pretraining_epochs:
            return "pretraining"
        return "training" if self.epoch < self.pretraining_epochs + self.epochs else "done"

    def run(self, checkpoint: str | os.PathLike | None = None) -> list[RoundReport]:
        """All epochs that remain; returns the reports.

        Args:
            checkpoint: a file that is written after every epoch and, where it exists already,
                continued from.
        """
        if checkpoint is not None and Path(checkpoint).exists():
            self.load(checkpoint)
        while self.stage != "done":
            self.train_epoch()
            if checkpoint is not None:
                self.save(checkpoint)
        return self.reports

    def train_epoch(self) -> dict[str, float]:
        """One epoch of the stage that is due, with a labelling round before it where due.

        Returns:
            The mean over the steps of every loss term.
        """
        stage = self.stage
        if stage == "done":
            raise ValueError(f"all {self.epoch} epochs are done; make epochs larger to go on.")
        since = self.epoch - self.pretraining_epochs
        if stage == "training" and not self.in_batch and since % self.relabel_every == 0:
            if self.restart and since and self.labeler is self.wrapper:
                check_heads_learn(self.wrapper.auxiliary_weight)
            self.label_pool()
            if self.restart:
                self.wrapper.load_state_dict(self._initial)
                self.optimizer.state.clear()
        sums: dict[str, float] = defaultdict(float)
        labelled_now: list[tuple[PseudoLabels, Tensor, Tensor]] = []
        self.wrapper.train()
        with seeded(self._seed("train"), self._device):
            for batch in self.loader():
                batch = batch.to(self._device)
                losses = self._step(batch)
                pretraining = isinstance(losses, Tensor)
                self.optimizer.zero_grad(set_to_none=True)
                (losses if pretraining else losses.total).backward()
                self.optimizer.step()
                if self.scheduler is not None:
                    self.scheduler.step()
                terms = {"total": losses.item()} if pretraining else losses.as_dict()
                for name, value in terms.items():
                    sums[name] += value
                if self.in_batch and not pretraining and losses.pseudo_labels is not None:
                    labels = losses.pseudo_labels.to("cpu")
                    labelled_now.append((labels, batch.indices.cpu(), batch.seed_labels.cpu()))
        if labelled_now:
            labels, indices, seed_labels = zip(*labelled_now, strict=True)
            self._add_report(
                PseudoLabels.concatenate(labels), torch.cat(indices), torch.cat(seed_labels)
            )
        self.epoch += 1
        means = {name: value / self.steps_per_epoch for name, value in sums.items()}
        logger.info("epoch %d (%s): %s", self.epoch, stage, means)
        return means

    def loader(self) -> DataLoader:
        """Batches of the coming epoch, ``MixedBatch``: real images alone in pretraining, else
        real, accepted and unlabelled ones at ``ratio``."""
        pool_size, ratio = len(self.data.pool), self.ratio
        if self.stage == "pretraining":
            accepted, unlabelled, ratio = [], [], (1, 0, 0)
        elif self.in_batch or self.pseudo_labels is None:
            accepted, unlabelled = [], range(pool_size)
            if self.in_batch and hasattr(self.data.pool, "set_epoch"):
                self.data.pool.set_epoch(self.epoch)
        else:
            mask = self.pseudo_labels.mask
            accepted, unlabelled = mask.nonzero().squeeze(1), (~mask).nonzero().squeeze(1)
        sampler = MixedBatchSampler(
            len(self.data.labelled), accepted, unlabelled, batch_size=self.batch_size, ratio=ratio,
            steps=self.steps_per_epoch, rng_seed=self._seed("batches"),
        )  # fmt: skip
        return self._loader(sampler)

    def label_pool(self) -> RoundReport:
        """Label the whole pool and rebuild the accepted set from nothing.

        Warns:
            CollapseWarning: nothing was accepted, or the accepted classes are lopsided.
        """
        border, size = len(self.data.labelled), len(self.data.pool)
        places = BatchSampler(range(border, border + size), self.batch_size, drop_last=False)
        with seeded(self._seed("label"), self._device):
            labels, seed_labels = self.labelling.label_pool(self._loader(places), self._device)
        self.pseudo_labels = labels
        return self._add_report(labels, torch.arange(size), seed_labels)

    def save(self, path: str | os.PathLike) -> None:
        """Write everything that a resumed run needs; at any moment the file is whole."""
        labels = self.pseudo_labels
        state = {
            "epoch": self.epoch,
            "wrapper": self.wrapper.state_dict(),
            "initial": self._initial,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "pseudo_labels": None if labels is None else vars(labels),
            "average": self.labelling.average,
            "reports": [asdict(report) for report in self.reports],
        }
        write_checkpoint(path, self._settings(), state)

    def load(self, path: str | os.PathLike) -> None:
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
        self.labelling.average = state["average"]
        self.reports = [RoundReport(**report) for report in state["reports"]]
        self.epoch = state["epoch"]

    def _step(self, batch: MixedBatch) -> AMSTLosses | Tensor:
        if self.stage == "pretraining":
            return self.wrapper.pretraining_loss(batch.real, batch.targets)
        if len(batch.synthetic) == 0:
            labels = None
        elif not self.in_batch and self.pseudo_labels is not None:
            labels = self.pseudo_labels[batch.indices.cpu()].to(self._device)
        else:
            labels = self.labelling.label(batch.synthetic, batch.seed_labels)
        real, targets, synthetic = batch.real, batch.targets, batch.synthetic
        return self.wrapper.losses(real, targets, synthetic, pseudo_labels=labels)

    def _add_report(
        self, labels: PseudoLabels, indices: Tensor, seed_labels: Tensor
    ) -> RoundReport:
        truth = None if self.truth is None else self.truth[indices]
        done = max(0, self.epoch - self.pretraining_epochs)
        report = make_report(labels, done, self.wrapper.num_classes, seed_labels, truth)
        self.reports.append(report)
        logger.info("%s", report)
        warn_of_collapse(report, self.labelling.expected_shares.tolist(), self.collapse_factor)
        return report

    def _loader(self, batch_sampler: object) -> DataLoader:
        return DataLoader(
            self.data,
            batch_sampler=batch_sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self._seed("workers")),
        )

    @property
    def _device(self) -> torch.device:
        return next(self.wrapper.parameters()).device

    def _seed(self, role: str) -> int:
        return epoch_seed(self.rng_seed, self.epoch, role)

    def _settings(self) -> dict[str, object]:
        """What must be the same for a run to go on as if nothing had happened."""
        names = (
            "batch_size", "ratio", "steps_per_epoch", "pretraining_epochs", "relabel_every",
            "restart", "seed_vote", "in_batch", "distribution_alignment", "rng_seed",
        )  # fmt: skip
        values = vars(self) | vars(self.labelling)
        sizes = {"labelled": len(self.data.labelled), "pool": len(self.data.pool)}
        return {name: values[name] for name in names} | sizes
