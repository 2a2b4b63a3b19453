"""The three stages of AMST over a pool of images: pretrain, label, train, label again."""

import contextlib
import hashlib
import logging
import math
import os
import pickle
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from dreamda_aug.amst.batches import (
    EpochDataset,
    MixedBatch,
    MixedImages,
    batch_counts,
    mixed_batches,
)
from dreamda_aug.amst.label_prior import LabelPrior
from dreamda_aug.amst.labeling import Labeler, RoundReport
from dreamda_aug.amst.rules import (
    AMSTLosses,
    PseudoLabels,
    RunPlan,
    agree_and_confident,
    align_distribution,
)
from dreamda_aug.amst.wrapper import AMSTWrapper
from dreamda_aug.arguments import checked
from dreamda_aug.errors import StorageError
from dreamda_aug.files import atomic_file, regular_file
from dreamda_aug.inputs.dataset_reader import SizedDataset
from dreamda_aug.method.seeding import seeded
from dreamda_aug.progress import bar

logger = logging.getLogger(__name__)
# Of checkpoints.
_FORMAT = 2
# ReMixMatch averages over 128 batches; this decay weights about as many.
_AVERAGE_DECAY = 0.99


class SelfTraining:
    """Runs AMST's stages over a labeled set and a pool, with your optimizer and scheduler.

    ``run`` does everything; its parts, ``loader``, ``label_pool`` and ``train_epoch``, can be
    called in a loop of your own. All randomness of an epoch follows from ``rng_seed`` and the
    number of the epoch, so a run that is interrupted between two epochs and loaded again ends with
    the same weights. This covers torch's randomness alone, not numpy's or ``random``'s.

    Args:
        wrapper: the classifier in its ``AMSTWrapper``, on the device to train on. Losses pass
            through its ``forward``, which ``wrapper.compile()`` compiles.
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
        label_prior: how often the requested class (the seed label) is the class that came out, or
            None. It enters each head's probabilities by Bayes' rule before they vote [ours].
        truth: true labels of the pool where known, −1 elsewhere; used in reports alone.
        num_workers: of the data loaders.
        rng_seed: all randomness of the run follows from it.

    Attributes:
        labeler: as given; may be replaced between epochs.
        epoch: epochs done, of both stages.
        steps_per_epoch: optimizer steps of an epoch.
        reports: one ``RoundReport`` per labeling round, or per epoch with ``online``.
        pseudo_labels: those of the last round, on the CPU; None before the first.
        average: mean probability of each class by the heads, (classes,), on the CPU: over the pool
            when they labeled it last, then a running average over batches.

    Raises:
        ValueError: a set is empty, ``truth`` or the prior do not fit, or what prepares the heads'
            votes meets another labeler or lacks a prior.

    Source: DreamDA, arXiv:2403.12803, method figure.
    """

    @checked
    def __init__(
        self, wrapper: AMSTWrapper, labeled: SizedDataset, pool: SizedDataset,
        optimizer: torch.optim.Optimizer, *,
        scheduler: Any = None,
        plan: RunPlan | None = None, labeler: Labeler | None = None,
        label_prior: LabelPrior | None = None, truth: Sequence[int] | Tensor | None = None,
        num_workers: int = 0, rng_seed: int = 0,
    ) -> None:
        if not len(labeled) or not len(pool):
            raise ValueError(
                f"labeled and pool must hold images, got {len(labeled)} and {len(pool)}.")
        truth = torch.full((len(pool),), -1) if truth is None else torch.as_tensor(truth)
        if len(truth) != len(pool):
            raise ValueError(f"truth must have {len(pool)} labels, got {len(truth)}.")
        self.wrapper, self.plan = wrapper, RunPlan() if plan is None else plan
        on_heads = {"distribution_alignment": self.plan.distribution_alignment,
                    "voting": self.plan.voting, "label_prior": label_prior}
        for name, value in on_heads.items():
            if value and labeler is not None:
                raise ValueError(f"{name} works on the wrapper's heads; leave labeler out.")
        if self.plan.voting is not None and label_prior is None:
            raise ValueError(
                "plan.voting accepts labels that a label prior has corrected; give SelfTraining "
                "label_prior=LabelPrior.estimate(…), or a plan with voting=None.")
        classes = wrapper.num_classes
        if label_prior is not None and len(label_prior.probabilities) != classes:
            raise ValueError(f"label_prior must have {classes} classes as the classifier has, "
                             f"got {len(label_prior.probabilities)}.")
        self.optimizer, self.scheduler = optimizer, scheduler
        self.labeler, self.label_prior, self.truth = labeler, label_prior, truth
        self.data, self.num_workers = MixedImages(labeled, pool, classes), num_workers
        of_pool = sum(batch_counts(self.plan.batch_size, self.plan.ratio, [1, 1, 1])[1:])
        self.steps_per_epoch = self.plan.steps_per_epoch or math.ceil(len(pool) / max(1, of_pool))
        self.rng_seed, self.epoch = rng_seed, 0
        self.reports: list[RoundReport] = []
        self.pseudo_labels: PseudoLabels | None = None
        self.average = self._shares = torch.full((classes,), 1 / classes)

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

        Args:
            checkpoint: a file that is written after every epoch. Where it exists already, the
                run continues from it; errors as in ``load``.
        """
        if checkpoint is not None and Path(checkpoint).exists():
            self.load(checkpoint)
        total = self.plan.pretraining_epochs + self.plan.epochs
        with bar("self-training", total - self.epoch, "epochs") as shown:
            while self.stage != "done":
                self.train_epoch()
                shown.update()
                if checkpoint is not None:
                    self.save(checkpoint)
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
        if stage == "training" and not self.plan.online and (
                self.training_epoch % self.plan.relabel_every == 0):
            self.label_pool()
        sums: dict[str, float] = defaultdict(float)
        online: list[tuple[PseudoLabels, Tensor, Tensor]] = []
        self.wrapper.train()
        with seeded(self._seed("train"), self._device):
            for batch in bar(stage, items=self.loader()):
                batch = batch.to(self._device)
                labels = self._labels(batch)
                losses: AMSTLosses | Tensor = self.wrapper(
                    batch.real, batch.targets, batch.synthetic, labels, stage)
                total, terms = (losses, {"total": losses.item()}) if isinstance(losses, Tensor) \
                    else (losses.total, losses.as_dict())
                self.optimizer.zero_grad(set_to_none=True)
                total.backward()
                self.optimizer.step()
                if self.scheduler is not None:
                    self.scheduler.step()
                for name, value in terms.items():
                    sums[name] += value / self.steps_per_epoch
                if self.plan.online and labels is not None:
                    online.append((labels.to("cpu"), batch.indices.cpu(), batch.seed_labels.cpu()))
        if online:
            found, indices, seed_labels = zip(*online, strict=True)
            self._add_report(PseudoLabels.concatenate(found), torch.cat(indices),
                             torch.cat(seed_labels))
        self.epoch += 1
        logger.info("epoch %d (%s): %s", self.epoch, stage, dict(sums))
        return dict(sums)

    def loader(self) -> DataLoader[MixedBatch]:
        """Batches of the coming epoch, ``MixedBatch``: real images alone in pretraining, else
        real, accepted and unlabeled ones at the plan's ratio."""
        pretraining, pool = self.stage == "pretraining", self.data.pool
        accepted = torch.zeros(0 if pretraining else len(pool), dtype=torch.bool)
        if not pretraining and self.plan.online and isinstance(pool, EpochDataset):
            pool.set_epoch(self.epoch)
        if not pretraining and not self.plan.online and self.pseudo_labels is not None:
            accepted = self.pseudo_labels.mask
        return self._loader(mixed_batches(
            len(self.data.labeled), *(mask.nonzero().flatten() for mask in (accepted, ~accepted)),
            batch_size=self.plan.batch_size, ratio=self.plan.ratio, steps=self.steps_per_epoch,
            rng_seed=self._seed("batches")))

    def label_pool(self) -> RoundReport:
        """Label the whole pool and rebuild the accepted set from nothing.

        Warns:
            CollapseWarning: nothing was accepted, or the accepted classes are lopsided.
        """
        seeds, labels, votes = [], [], []
        with seeded(self._seed("label"), self._device):
            rows = range(len(self.data.labeled), len(self.data.labeled) + len(self.data.pool))
            for batch in self._loader(BatchSampler(rows, self.plan.batch_size, drop_last=False)):
                seeds.append(batch.seed_labels)
                images = batch.synthetic.to(self._device)
                if self.labeler is None:
                    # kept, since what is measured over the pool is needed before any vote
                    votes.append(self.wrapper.head_probabilities(images).cpu())
                else:
                    given = batch.seed_labels.to(self._device)
                    labels.append(self.labeler.label(images, given).to("cpu"))
        seed_labels = torch.cat(seeds)
        if self.labeler is None:
            probabilities = torch.cat(votes, dim=1)
            self.average = probabilities.mean((0, 1))
            labels = [self._vote(probabilities, seed_labels)]
        self.pseudo_labels = PseudoLabels.concatenate(labels)
        return self._add_report(self.pseudo_labels, torch.arange(len(seed_labels)), seed_labels)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that a resumed run needs; the file is never half written."""
        state = {name: part.state_dict() for name, part in self._parts().items()} | {
            "epoch": self.epoch, "class_average": self.average,
            "pseudo_labels": self.pseudo_labels and vars(self.pseudo_labels),
            "reports": [asdict(report) for report in self.reports]}
        with atomic_file(Path(path)) as file:
            torch.save({"format": _FORMAT, "settings": self._settings(), "state": state}, file)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continue from what ``save`` wrote.

        Raises:
            FileNotFoundError: no such file.
            StorageError: another kind of file, or a damaged one.
            ValueError: written with other settings.
        """
        content: Any = None
        # torch.save writes a zip archive; of other files torch.load would guess older formats
        if zipfile.is_zipfile(regular_file(os.fspath(path))):
            with contextlib.suppress(RuntimeError, EOFError, ValueError, KeyError,
                                     pickle.UnpicklingError):
                content = torch.load(path, map_location="cpu", weights_only=True)
        found = content.get("format") if isinstance(content, dict) else None
        if found != _FORMAT:
            raise StorageError(
                f"{path}: expected a checkpoint of format {_FORMAT} that SelfTraining.save wrote, "
                f"found {f'format {found}' if found else 'another file, or a damaged one'}.")
        settings, written, state = self._settings(), content["settings"], content["state"]
        different = [name for name in settings if settings[name] != written.get(name)]
        if different:
            raise ValueError(
                f"{path}: written with other settings: {', '.join(different)}; {different[0]}: "
                f"expected {settings[different[0]]!r}, found {written.get(different[0])!r}.")
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.pseudo_labels = state["pseudo_labels"] and PseudoLabels(**state["pseudo_labels"])
        self.epoch, self.average = state["epoch"], state["class_average"]
        self.reports = [RoundReport(**report) for report in state["reports"]]

    def _loader(self, batches: Iterable[list[int]]) -> DataLoader[MixedBatch]:
        # without a batch size of its own, a loader takes whole batches from the dataset
        return DataLoader(self.data, sampler=batches, batch_size=None, num_workers=self.num_workers,
                          generator=torch.Generator().manual_seed(self._seed("workers")))

    def _parts(self) -> dict[str, Any]:
        """What has a state_dict."""
        parts = {"wrapper": self.wrapper, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return {name: part for name, part in parts.items() if part is not None}

    def _labels(self, batch: MixedBatch) -> PseudoLabels | None:
        """Labels of a batch's synthetic images: made now, or those of the last round."""
        if not len(batch.synthetic):
            return None
        if not self.plan.online and self.pseudo_labels is not None:
            return self.pseudo_labels[batch.indices.cpu()].to(self._device)
        if self.labeler is not None:
            return self.labeler.label(batch.synthetic, batch.seed_labels)
        probabilities = self.wrapper.head_probabilities(batch.synthetic)
        # A running average: one batch has too few images to estimate the class shares.
        now = probabilities.mean((0, 1)).cpu()
        self.average = self.average.lerp(now, 1 - _AVERAGE_DECAY)
        return self._vote(probabilities, batch.seed_labels)

    def _vote(self, probabilities: Tensor, seed_labels: Tensor) -> PseudoLabels:
        """Labels from the probabilities of each head, (heads, N, classes)."""
        average, shares = (each.to(probabilities.device) for each in (self.average, self._shares))
        if self.plan.distribution_alignment:
            probabilities = align_distribution(probabilities, average, shares)
        if self.label_prior is not None:
            probabilities = self.label_prior.update(probabilities, seed_labels, shares)
        found = agree_and_confident(probabilities, self.wrapper.voting)
        if self.plan.voting is None:
            return found
        trusted = agree_and_confident(probabilities, self.plan.voting)
        return replace(found, mask=torch.where(seed_labels >= 0, trusted.mask, found.mask))

    def _add_report(self, labels: PseudoLabels, rows: Tensor, seed_labels: Tensor) -> RoundReport:
        report = RoundReport.of(self.training_epoch, labels, seed_labels, self.truth[rows],
                                self.wrapper.num_classes)
        self.reports.append(report)
        logger.info("%s", report)
        report.warn_of_collapse()
        return report

    @property
    def _device(self) -> torch.device:
        return next(self.wrapper.parameters()).device

    def _seed(self, role: str) -> int:
        """A seed in [0, 2⁵⁶) for one role, such as ``"batches"``, in the coming epoch."""
        text = f"{self.rng_seed}/{self.epoch}/{role}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])

    def _settings(self) -> dict[str, object]:
        """What must be the same for a run to continue as if nothing had happened."""
        prior = self.label_prior
        found = asdict(self.plan) | {
            "label_prior": None if prior is None else prior.probabilities.tolist(),
            "steps_per_epoch": self.steps_per_epoch, "rng_seed": self.rng_seed,
            "labeled": len(self.data.labeled), "pool": len(self.data.pool)}
        del found["epochs"]  # the run may be given more
        return found
