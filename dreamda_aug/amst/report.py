"""What a labelling round did to the pool, and the warnings that it deserves."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamda_aug.amst.losses import PseudoLabels


class CollapseWarning(UserWarning):
    """Accepted pseudo-labels miss a class, crowd into one, or there are none."""


@dataclass(frozen=True)
class RoundReport:
    """One labelling of the pool, or in in-batch mode one epoch of it.

    Attributes:
        epoch: training epochs done when it was made.
        images: images that were labelled.
        accepted: how many were accepted.
        accepted_share: the same as a share of the images, in [0, 1].
        agreement: share of images on which all votes agreed, in [0, 1].
        confidence: mean confidence over all images, in [0, 1].
        class_counts: accepted images per class.
        seed_label_agreement: share of accepted images whose pseudo-label is their seed label,
            among those with a known one; None if there are none.
        accuracy: share of accepted images with the true label; None if no truth is known.
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
    """Warn if no image was accepted, a class is missing, or one exceeds its share too far.

    Args:
        report: the round.
        expected_shares: share of each class that is expected among the accepted images.
        factor: how many times its expected share a class may reach.
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
