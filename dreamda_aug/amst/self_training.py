"""The three stages of AMST over a pool of images: pretrain, label, train, label again."""

import contextlib
import hashlib
import logging
import os
import pickle
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from dreamda_aug.amst.batches import BatchLoading, MixedBatch
from dreamda_aug.amst.label_prior import LabelPrior
from dreamda_aug.amst.labeling import Labeler, PoolLabeling, RoundReport
from dreamda_aug.amst.losses import AMSTLosses, PseudoLabels
from dreamda_aug.amst.rules import RunPlan
from dreamda_aug.amst.wrapper import AMSTWrapper
from dreamda_aug.errors import StorageError
from dreamda_aug.files import atomic_file, regular_file
from dreamda_aug.inputs.dataset_reader import SizedDataset
from dreamda_aug.progress import bar

logger = logging.getLogger(__name__)
# Of checkpoints.
_FORMAT = 2


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
        labeling: labels the pool; its ``labeler`` may be replaced between epochs.
        epoch: epochs done, of both stages.
        steps_per_epoch: optimizer steps of an epoch.
        reports: one ``RoundReport`` per labeling round, or per epoch with ``online``.
        pseudo_labels: those of the last round, on the CPU; None before the first.

    Raises:
        ValueError: a set is empty, ``truth`` or the prior do not fit, or what prepares the heads'
            votes meets another labeler.

    Source: DreamDA, arXiv:2403.12803, method figure.
    """

    def __init__(
        self, wrapper: AMSTWrapper, labeled: SizedDataset, pool: SizedDataset,
        optimizer: torch.optim.Optimizer, *,
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
        self.wrapper, self.plan = wrapper, RunPlan() if plan is None else plan
        self.optimizer, self.scheduler = optimizer, scheduler
        self.data = BatchLoading(labeled, pool, wrapper.num_classes, self.plan, num_workers)
        self.steps_per_epoch = self.data.steps
        decay = self.plan.ema_decay
        self._average = None if decay is None else _averaged(self.wrapper, decay)
        labels = self.wrapper if self._average is None else self._average.module
        self.labeling = PoolLabeling(cast(AMSTWrapper, labels), labeler, self.plan, label_prior)
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
        total = self.plan.pretraining_epochs + self.plan.epochs
        with bar("self-training", total - self.epoch, "epochs") as shown:
            while self.stage != "done":
                self.train_epoch()
                shown.update()
                if checkpoint is not None:
                    self.save(checkpoint)
        # the averaged weights, or its own
        self.wrapper.load_state_dict(self.labeling.wrapper.state_dict())
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
                losses = self._losses(batch)
                total = losses if isinstance(losses, Tensor) else losses.total
                self.optimizer.zero_grad(set_to_none=True)
                total.backward()
                self.optimizer.step()
                if self.scheduler is not None:
                    self.scheduler.step()
                if self._average is not None:
                    self._average.update_parameters(self.wrapper)
                terms = losses.as_dict() if isinstance(losses, AMSTLosses) else {
                    "total": total.item()}
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
        seeds = self._seed("batches"), self._seed("workers")
        if self.stage == "pretraining":
            return self.data.mixed(None, *seeds)
        if self.plan.online and isinstance(self.data.pool, EpochDataset):
            self.data.pool.set_epoch(self.epoch)
        accepted = torch.zeros(len(self.data.pool), dtype=torch.bool)
        if self.pseudo_labels is not None and not self.plan.online:
            accepted = self.pseudo_labels.mask
        return self.data.mixed(accepted, *seeds)

    def label_pool(self) -> RoundReport:
        """Label the whole pool and rebuild the accepted set from nothing.

        Warns:
            CollapseWarning: nothing was accepted, or the accepted classes are lopsided.
        """
        batches = self.data.whole_pool(self._seed("workers"))
        with seeded(self._seed("label"), self._device):
            labels, seed_labels = self.labeling.label_pool(batches, self._device)
        self.pseudo_labels = labels
        return self._add_report(labels, torch.arange(len(labels)), seed_labels)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that a resumed run needs; the file is never half written."""
        labels = self.pseudo_labels
        state = {name: part.state_dict() for name, part in self._parts().items()} | {
            "epoch": self.epoch, "class_average": self.labeling.average,
            "pseudo_labels": None if labels is None else vars(labels),
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
        labels = state["pseudo_labels"]
        self.pseudo_labels = None if labels is None else PseudoLabels(**labels)
        self.epoch, self.labeling.average = state["epoch"], state["class_average"]
        self.reports = [RoundReport(**report) for report in state["reports"]]

    def _parts(self) -> dict[str, Any]:
        """What has a state_dict."""
        parts = {"wrapper": self.wrapper, "optimizer": self.optimizer,
                 "scheduler": self.scheduler, "weight_average": self._average}
        return {name: part for name, part in parts.items() if part is not None}

    def _losses(self, batch: MixedBatch) -> AMSTLosses | Tensor:
        """The loss of one batch in the stage that is due, through ``forward``."""
        forward: Callable[..., AMSTLosses | Tensor] = self.wrapper
        if self.stage == "pretraining":
            return forward(batch.real, batch.targets, stage="pretraining")
        if len(batch.synthetic) == 0:
            labels = None
        elif self.plan.online or self.pseudo_labels is None:
            labels = self.labeling.label(batch.synthetic, batch.seed_labels)
        else:
            labels = self.pseudo_labels[batch.indices.cpu()].to(self._device)
        return forward(batch.real, batch.targets, batch.synthetic, labels, "training")

    def _add_report(
        self, labels: PseudoLabels, indices: Tensor, seed_labels: Tensor
    ) -> RoundReport:
        truth = None if self.truth is None else self.truth[indices]
        self.reports.append(
            self.labeling.report(labels, self.training_epoch, seed_labels, truth))
        logger.info("%s", self.reports[-1])
        self.reports[-1].warn_of_collapse()
        return self.reports[-1]

    @property
    def _device(self) -> torch.device:
        return next(self.wrapper.parameters()).device

    def _seed(self, role: str) -> int:
        """A seed in [0, 2⁵⁶) for one role, such as ``"batches"``, in the coming epoch."""
        text = f"{self.rng_seed}/{self.epoch}/{role}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])

    def _settings(self) -> dict[str, object]:
        """What must be the same for a run to continue as if nothing had happened."""
        prior = self.labeling.label_prior
        found = asdict(self.plan) | {
            "label_prior": None if prior is None else prior.probabilities.tolist(),
            "steps_per_epoch": self.steps_per_epoch, "rng_seed": self.rng_seed,
            "labeled": len(self.data.labeled), "pool": len(self.data.pool)}
        del found["epochs"]  # the run may be given more
        return found


def _averaged(wrapper: nn.Module, decay: float) -> AveragedModel:
    """The moving average of weights and buffers, with Mean Teacher's ramp-up, arXiv:1703.01780."""
    def average(kept: Tensor, now: Tensor, count: Tensor | int) -> Tensor:
        # the first steps count more, so that random weights are soon forgotten
        share = max(1 - decay, 1 / (float(count) + 1))
        return kept.lerp(now, share) if now.is_floating_point() else now

    return AveragedModel(wrapper, avg_fn=average, use_buffers=True)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generators (of the CPU and ``device``), seeded inside, restored afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
