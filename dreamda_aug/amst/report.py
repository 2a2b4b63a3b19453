"""What a labeling round accepted, and warnings where the accepted labels look wrong."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamda_aug.amst.losses import AMSTLosses, PseudoLabels
from dreamda_aug.amst.pool import MixedBatch


class CollapseWarning(UserWarning):
    """No pseudo-label is accepted, or the accepted ones miss a class or crowd into one."""


@dataclass(frozen=True)
class RoundReport:
    """One labeling of the pool, or in in-batch mode one epoch of it.

    Attributes:
        epoch: training epochs done before the round.
        images: images that were labeled.
        accepted: number of accepted images.
        accepted_share: the same as a share of the images, in [0, 1].
        agreement: share of images on which all votes agreed, in [0, 1].
        confidence: mean confidence over all images, in [0, 1].
        class_counts: accepted images per class.
        seed_label_agreement: share of the accepted images with a known seed label whose
            pseudo-label is that seed label; None if there are no such images.
        accuracy: share of the accepted images whose pseudo-label is the true label; None if no
            true label is known.
        accuracy_all: the same over accepted and rejected images.
    """

    epoch: int
    images: int
    accepted: int
    accepted_share: float
    agreement: float
    confidence: float
    class_counts: tuple[int, ...]
    seed_label_agreement: float | None = None
    accuracy: float | None = None
    accuracy_all: float | None = None


class EpochRecord:
    """The loss terms of an epoch, and the labels that were made for its batches.

    Args:
        keep_labels: keep the labels too, for a report on batches that were labeled when drawn.
    """

    def __init__(self, keep_labels: bool) -> None:
        self._keep_labels, self._steps = keep_labels, 0
        self._sums: dict[str, float] = defaultdict(float)
        self._labeled: list[tuple[PseudoLabels, Tensor, Tensor]] = []

    def add(self, losses: AMSTLosses | Tensor, batch: MixedBatch) -> None:
        """One step: its losses (a tensor in pretraining) and the batch that gave them."""
        if isinstance(losses, Tensor):
            terms = {"total": losses.item()}
        else:
            terms = losses.as_dict()
            if self._keep_labels and losses.pseudo_labels is not None:
                labels = losses.pseudo_labels.to("cpu")
                self._labeled.append((labels, batch.indices.cpu(), batch.seed_labels.cpu()))
        for name, value in terms.items():
            self._sums[name] += value
        self._steps += 1

    def means(self) -> dict[str, float]:
        """The mean over the steps of every loss term."""
        return {name: value / self._steps for name, value in self._sums.items()}

    def labeled(self) -> tuple[PseudoLabels, Tensor, Tensor] | None:
        """All labels with the pool indices and seed labels of their images; None without any."""
        if not self._labeled:
            return None
        labels, indices, seed_labels = zip(*self._labeled, strict=True)
        return PseudoLabels.concatenate(labels), torch.cat(indices), torch.cat(seed_labels)


def make_report(
    pseudo_labels: PseudoLabels,
    epoch: int,
    num_classes: int,
    seed_labels: Tensor | None = None,
    truth: Tensor | None = None,
) -> RoundReport:
    """Sum up one round; ``seed_labels`` and ``truth`` are (N,) integers, −1 where unknown."""
    labels, mask = pseudo_labels.hard_labels, pseudo_labels.mask
    count = len(mask)
    return RoundReport(
        epoch=epoch,
        images=count,
        accepted=int(mask.sum()),
        accepted_share=mask.float().mean().item() if count else 0.0,
        agreement=(pseudo_labels.agreement == 1).float().mean().item() if count else 0.0,
        confidence=pseudo_labels.confidence.mean().item() if count else 0.0,
        class_counts=tuple(torch.bincount(labels[mask], minlength=num_classes).tolist()),
        seed_label_agreement=_matches(labels[mask], seed_labels, mask),
        accuracy=_matches(labels[mask], truth, mask),
        accuracy_all=_matches(labels, truth, torch.ones_like(mask)),
    )


def warn_of_collapse(
    report: RoundReport, expected_shares: Sequence[float], factor: float
) -> None:
    """Warn if no image was accepted, or a class is missing or has far more than its share.

    Args:
        report: the round.
        expected_shares: share of each class that is expected among the accepted images.
        factor: the largest multiple of its expected share that a class may reach.

    Warns:
        CollapseWarning: with what to try.
    """
    if report.accepted == 0:
        warnings.warn(
            f"no image of {report.images} was accepted (all votes agreed on "
            f"{report.agreement:.0%}, mean confidence {report.confidence:.2f}): training goes on "
            "with real images and the consistency term. Pretrain longer, or lower "
            "confidence_threshold.",
            CollapseWarning,
            stacklevel=3,
        )
        return
    missing = [
        number
        for number, count in enumerate(report.class_counts)
        if count == 0 and expected_shares[number] > 0
    ]
    if missing:
        warnings.warn(
            f"accepted labels miss the classes {missing}; pretrain longer, lower "
            "confidence_threshold, or use distribution_alignment=True.",
            CollapseWarning,
            stacklevel=3,
        )
    crowded = [
        f"{number} ({count / report.accepted:.0%}, expected {expected_shares[number]:.0%})"
        for number, count in enumerate(report.class_counts)
        if count / report.accepted > factor * expected_shares[number]
    ]
    if crowded:
        warnings.warn(
            f"accepted labels crowd into class {', '.join(crowded)}; try "
            "distribution_alignment=True, or raise confidence_threshold.",
            CollapseWarning,
            stacklevel=3,
        )


def _matches(labels: Tensor, reference: Tensor | None, mask: Tensor) -> float | None:
    if reference is None:
        return None
    reference = reference.to(labels.device)[mask]
    known = reference >= 0
    return (labels == reference)[known].float().mean().item() if known.any() else None
