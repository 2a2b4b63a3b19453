"""Labeling a pool of images in rounds, what a round accepted, and warnings where it looks wrong."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dreamda_aug.amst.batches import MixedBatch
from dreamda_aug.amst.label_prior import LabelPrior
from dreamda_aug.amst.labelers import Labeler
from dreamda_aug.amst.losses import PseudoLabels, agree_and_confident, align_distribution
from dreamda_aug.amst.rules import RunPlan
from dreamda_aug.amst.wrapper import AMSTWrapper

# ReMixMatch averages over 128 batches; this decay weights about as many.
_AVERAGE_DECAY = 0.99
# A class is suspicious beyond this multiple of an equal share of the accepted labels [ours].
_CROWDED = 3.0


class CollapseWarning(UserWarning):
    """No pseudo-label is accepted, or the accepted ones miss a class or crowd into one."""


class PoolLabeling:
    """Labels the pool of ``SelfTraining``, by the wrapper's heads or by another labeler.

    Attributes:
        labeler: labels in the place of the heads, or None; may be replaced between epochs.
        average: mean probability of each class, (classes,), on the CPU: over the pool when it was
            labeled last, then a running average over batches.
    """

    def __init__(
        self, wrapper: AMSTWrapper, labeler: Labeler | None, plan: RunPlan,
        label_prior: LabelPrior | None,
    ) -> None:
        on_heads = {"distribution_alignment": plan.distribution_alignment, "voting": plan.voting,
                    "label_prior": label_prior}
        for name, value in on_heads.items():
            if value and labeler is not None:
                raise ValueError(f"{name} works on the wrapper's heads; leave labeler out.")
        if plan.voting is not None and label_prior is None:
            raise ValueError(
                "plan.voting accepts labels that a label prior has corrected; give SelfTraining "
                "label_prior=LabelPrior.estimate(…), or a plan with voting=None.")
        classes = wrapper.num_classes
        if label_prior is not None and len(label_prior.probabilities) != classes:
            raise ValueError(f"label_prior must have {classes} classes as the classifier has, "
                             f"got {len(label_prior.probabilities)}.")
        self.wrapper, self.labeler = wrapper, labeler
        self.plan, self.label_prior = plan, label_prior
        self._shares = torch.full((classes,), 1 / classes)
        self.average = self._shares.clone()

    def label(self, images: Tensor, seed_labels: Tensor) -> PseudoLabels:
        """Labels of one batch; with alignment the batch enters the running average."""
        if self.labeler is not None:
            return self.labeler.label(images, seed_labels)
        probabilities = self.wrapper.head_probabilities(images)
        # A running average: one batch has too few images to estimate the class shares.
        now = probabilities.mean((0, 1)).cpu()
        self.average = self.average.lerp(now, 1 - _AVERAGE_DECAY)
        return self._vote(probabilities, seed_labels)

    def label_pool(
        self, batches: Iterable[MixedBatch], device: torch.device
    ) -> tuple[PseudoLabels, Tensor]:
        """Labels of a whole pool in batches, and its seed labels, both on the CPU."""
        seeds, labels, probabilities = [], [], []
        for batch in batches:
            seeds.append(batch.seed_labels)
            images = batch.synthetic.to(device)
            if self.labeler is None:
                # kept, since what is measured over the pool is needed before any vote
                probabilities.append(self.wrapper.head_probabilities(images).cpu())
            else:
                labels.append(self.labeler.label(images, batch.seed_labels.to(device)).to("cpu"))
        seed_labels = torch.cat(seeds)
        if self.labeler is not None:
            return PseudoLabels.concatenate(labels), seed_labels
        of_pool = torch.cat(probabilities, dim=1)
        self.average = of_pool.mean((0, 1))
        return self._vote(of_pool, seed_labels), seed_labels

    def _vote(self, probabilities: Tensor, seed_labels: Tensor) -> PseudoLabels:
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


@dataclass(frozen=True)
class RoundReport:
    """One labeling of the pool, or with ``RunPlan(online=True)`` one epoch of it.

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


def make_report(
    pseudo_labels: PseudoLabels, epoch: int, num_classes: int,
    seed_labels: Tensor | None = None, truth: Tensor | None = None,
) -> RoundReport:
    """Sum up one round; ``seed_labels`` and ``truth`` are (N,) integers, −1 where unknown."""
    labels, mask = pseudo_labels.hard_labels, pseudo_labels.mask
    return RoundReport(
        epoch=epoch,
        images=len(mask),
        accepted=int(mask.sum()),
        accepted_share=mask.float().mean().item(),
        agreement=(pseudo_labels.agreement == 1).float().mean().item(),
        confidence=pseudo_labels.confidence.mean().item(),
        class_counts=tuple(torch.bincount(labels[mask], minlength=num_classes).tolist()),
        seed_label_agreement=_matches(labels, seed_labels, mask),
        accuracy=_matches(labels, truth, mask),
    )


def warn_of_collapse(report: RoundReport) -> None:
    """Warn if no image was accepted, or a class is missing or has far more than an equal share."""
    if report.accepted == 0:
        _warn(
            f"no image of {report.images} was accepted (all votes agreed on "
            f"{report.agreement:.0%}, mean confidence {report.confidence:.2f}): training continues "
            "with real images and the consistency term. Pretrain longer, or lower "
            "confidence_threshold.")
        return
    expected = 1 / len(report.class_counts)
    shares = [count / report.accepted for count in report.class_counts]
    missing = [number for number, share in enumerate(shares) if share == 0]
    if missing:
        _warn(f"accepted labels miss the classes {missing}; pretrain longer, lower "
              "confidence_threshold, or use distribution_alignment=True.")
    crowded = [f"{number} ({share:.0%}, expected {expected:.0%})"
               for number, share in enumerate(shares) if share > _CROWDED * expected]
    if crowded:
        _warn(f"accepted labels crowd into class {', '.join(crowded)}; try "
              "distribution_alignment=True, or raise confidence_threshold.")


def _warn(message: str) -> None:
    warnings.warn(message, CollapseWarning, stacklevel=4)


def _matches(labels: Tensor, reference: Tensor | None, mask: Tensor) -> float | None:
    if reference is None:
        return None
    known = mask & (reference >= 0)
    return (labels == reference)[known].float().mean().item() if known.any() else None
