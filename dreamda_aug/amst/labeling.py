"""Labeling a pool of images: by the heads of a wrapper, aligned or not, or by another labeler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamda_aug.amst.label_prior import LabelPrior
from dreamda_aug.amst.labelers import Labeler
from dreamda_aug.amst.losses import PseudoLabels, agree_and_confident, align_distribution
from dreamda_aug.amst.pool import MixedBatch
from dreamda_aug.amst.rules import VotingRule
from dreamda_aug.amst.wrapper import AMSTWrapper

# ReMixMatch averages over 128 batches; this decay weights about as many.
_AVERAGE_DECAY = 0.99


@dataclass(frozen=True)
class LabelingRule:
    """How the heads' votes on a pool are prepared, and when a round is suspicious.

    Attributes:
        seed_vote: the seed label is a further vote of the heads [ours].
        distribution_alignment: scale the heads' probabilities before they vote, so that the mean
            probability of each class is its expected share [ReMixMatch].
        expected_shares: share of each class expected in the pool, one number ≥ 0 per class with
            sum 1; None: all equal.
        label_prior: how often the class asked for (the seed label) is the class that came out;
            it enters each head's probabilities by Bayes' rule before they vote, once heads that
            are too sure are softened [ours].
        unlabeled_voting: when the heads' label of an image without a seed label (−1) is accepted,
            such as a real image without label: a label prior knows nothing of it [ours]. None: as
            of all others.
        collapse_factor: warn if a class reaches more than this multiple of its expected share
            among the accepted labels, > 0 [ours].

    Raises:
        ValueError: shares that are negative or do not sum to 1, a factor that is not > 0, or
            ``label_prior`` with ``seed_vote``.
    """

    seed_vote: bool = False
    distribution_alignment: bool = False
    expected_shares: Sequence[float] | None = None
    collapse_factor: float = 3.0
    label_prior: LabelPrior | None = None
    unlabeled_voting: VotingRule | None = None

    def __post_init__(self) -> None:
        if not self.collapse_factor > 0:
            raise ValueError(f"collapse_factor must be > 0, got {self.collapse_factor}.")
        if self.label_prior is not None and self.seed_vote:
            raise ValueError("label_prior and seed_vote count the seed label twice; leave one out.")
        if self.expected_shares is None:
            return
        shares = tuple(float(share) for share in self.expected_shares)
        if not shares or min(shares) < 0 or not abs(sum(shares) - 1) <= 1e-3:
            raise ValueError(
                "expected_shares must be numbers ≥ 0 with sum 1, one per class, got "
                f"{list(shares)}."
            )
        object.__setattr__(self, "expected_shares", shares)

    def shares_of(self, classes: int) -> Tensor:
        """The expected share of each class, (classes,), on the CPU.

        Raises:
            ValueError: not one share per class.
        """
        if self.expected_shares is None:
            return torch.full((classes,), 1 / classes)
        if len(self.expected_shares) != classes:
            raise ValueError(
                f"expected_shares must have {classes} numbers, one per class of the classifier, "
                f"got {len(self.expected_shares)}."
            )
        return torch.tensor(self.expected_shares, dtype=torch.float32)


class PoolLabeling:
    """Labels the pool of ``SelfTraining``.

    Args:
        wrapper: its auxiliary heads label, unless ``labeler`` is given.
        labeler: labels in their place; None: the heads.
        rule: how the heads' votes are prepared.

    Attributes:
        labeler: labels the pool; may be replaced between epochs.
        expected_shares: share of each class expected in the pool, (classes,), on the CPU.
        average: mean probability of each class, (classes,), on the CPU: over the pool when it was
            labeled last, then a running average over batches.

    Raises:
        ValueError: alignment together with another labeler, or not one share per class.
    """

    def __init__(
        self, wrapper: AMSTWrapper, labeler: Labeler | None, rule: LabelingRule
    ) -> None:
        for name in ("distribution_alignment", "label_prior", "unlabeled_voting"):
            if getattr(rule, name) and labeler is not None:
                raise ValueError(f"{name} works on the wrapper's heads; leave labeler out.")
        if rule.label_prior is not None:
            classes = len(rule.label_prior.probabilities)
            if classes != wrapper.num_classes:
                raise ValueError(
                    f"label_prior must have {wrapper.num_classes} classes as the classifier has, "
                    f"got {classes}."
                )
        self.wrapper, self.rule = wrapper, rule
        self.labeler: Labeler = wrapper if labeler is None else labeler
        self.expected_shares = rule.shares_of(wrapper.num_classes)
        self.average = self.expected_shares.clone()

    def label(self, images: Tensor, seed_labels: Tensor) -> PseudoLabels:
        """Labels of one batch; with alignment the batch enters the running average."""
        if self.labeler is not self.wrapper:
            return self.labeler.label(images, seed_labels)
        probabilities = self.wrapper.head_probabilities(images)
        if self.rule.distribution_alignment:
            # A running average: one batch has too few images to estimate the class shares.
            average = self.average.to(probabilities.device)
            average = average.lerp(probabilities.mean((0, 1)), 1 - _AVERAGE_DECAY)
            self.average = average.cpu()
        return self._vote(probabilities, seed_labels)

    def label_pool(
        self, batches: Iterable[MixedBatch], device: torch.device
    ) -> tuple[PseudoLabels, Tensor]:
        """Labels of a whole pool in batches, and its seed labels, both on the CPU."""
        seeds: list[Tensor] = []
        labels: list[PseudoLabels] = []
        # What is measured over the pool is needed before any vote, so probabilities are kept.
        kept: list[Tensor] = []
        whole = self.labeler is self.wrapper and (
            self.rule.distribution_alignment or self.rule.label_prior is not None
            or self.wrapper.voting.threshold != "fixed"
            or self.rule.unlabeled_voting is not None
        )
        for batch in batches:
            seeds.append(batch.seed_labels)
            batch = batch.to(device)
            if whole:
                kept.append(self.wrapper.head_probabilities(batch.synthetic).cpu())
            else:
                labels.append(self.label(batch.synthetic, batch.seed_labels).to("cpu"))
        seed_labels = torch.cat(seeds)
        if not whole:
            return PseudoLabels.concatenate(labels), seed_labels
        probabilities = torch.cat(kept, dim=1)
        self.average = probabilities.mean((0, 1))
        return self._vote(probabilities, seed_labels), seed_labels

    def _vote(self, probabilities: Tensor, seed_labels: Tensor) -> PseudoLabels:
        seed_labels = seed_labels.to(probabilities.device)
        if self.rule.distribution_alignment:
            average = self.average.to(probabilities.device)
            expected = self.expected_shares.to(probabilities.device)
            probabilities = align_distribution(probabilities, average, expected)
        if self.rule.label_prior is not None:
            probabilities = self.rule.label_prior.update(
                probabilities, seed_labels, self.expected_shares)
        found = self.wrapper.vote(probabilities, seed_labels if self.rule.seed_vote else None)
        if self.rule.unlabeled_voting is None:
            return found
        unlabeled = seed_labels < 0
        return found.replaced(unlabeled, agree_and_confident(
            probabilities[:, unlabeled], self.rule.unlabeled_voting))
