"""Rules, plans and loss terms of AMST: frozen values and pure functions.

The paper's code was not released. Choices of the paper are marked [paper], those of another
published method with its name, and our own [ours].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamda_aug.arguments import check_fields, real, whole

ViewName = Literal["weak", "strong"]


@dataclass(frozen=True)
class VotingRule:
    """When the votes of the auxiliary heads make a label that is accepted.

    Attributes:
        agreement: ``"all"`` heads vote for the same class [paper], or the ``"majority"``, more than
            half of them, does [ours].
        confidence_threshold: smallest accepted mean over the heads of the probability of that
            class, in [0, 1] [ours].

    Raises:
        ValueError: an unknown word, or a threshold outside [0, 1].
    """

    agreement: Literal["all", "majority"] = "all"
    confidence_threshold: float = 0.9

    def __post_init__(self) -> None:
        check_fields(self)
        real("confidence_threshold", self.confidence_threshold, "lie in [0, 1]", 0, 1)


@dataclass(frozen=True)
class RunPlan:
    """The stages of ``SelfTraining``, what a batch holds, and when labels are accepted.

    An epoch is ``steps_per_epoch`` optimizer steps. First come ``pretraining_epochs`` on real
    images alone, then ``epochs`` with synthetic images.

    Attributes:
        pretraining_epochs: length of the first stage, ≥ 0.
        epochs: length of the training stage, ≥ 0.
        steps_per_epoch: ≥ 1, or None for the number of steps that goes through the pool once.
        batch_size: images per batch, ≥ 2.
        ratio: real : accepted : unlabeled images in a batch [ours]. Where one of the last two
            is empty, the other takes its place.
        relabel_every: number of training epochs between two labeling rounds, ≥ 1. Each round
            rebuilds the accepted set from nothing [ours].
        online: label every batch when it is drawn, for a pool whose images are new in every
            epoch. There are no labeling rounds then, and a batch is real : (accepted +
            unlabeled).
        voting: rule for images that have a seed label, once a `LabelPrior` has corrected the
            votes, or None to keep the wrapper's own rule [ours]. Images without a seed label (−1)
            always follow the wrapper's rule.
        distribution_alignment: scale the heads' probabilities before they vote, so that all
            classes have the same mean probability [ReMixMatch].

    Raises:
        ValueError: an argument breaks its rule.
    """

    pretraining_epochs: int = 1
    epochs: int = 3
    steps_per_epoch: int | None = None
    batch_size: int = 64
    ratio: tuple[float, float, float] = (1, 1, 1)
    relabel_every: int = 1
    online: bool = False
    voting: VotingRule | None = None
    distribution_alignment: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in (("pretraining_epochs", 0), ("epochs", 0), ("steps_per_epoch", 1),
                            ("batch_size", 2), ("relabel_every", 1)):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), least)
        if min(self.ratio) < 0 or self.ratio[0] == 0:
            raise ValueError(
                "ratio must be three numbers >= 0, real : accepted : unlabeled, the first of them "
                f"> 0, such as (1, 1, 1); got {self.ratio}.")


# AMST+ of our study, for images made by a model that was conditioned on the class: with a
# `LabelPrior` nearly all labels are right, and the images that the heads doubt teach most.
# The heads learn for an eighth of the steps before they label; the prior makes up for the rest.
AMST_PLUS = RunPlan(pretraining_epochs=1, epochs=7, relabel_every=7, ratio=(1, 1.75, 0.25),
                    voting=VotingRule("majority", confidence_threshold=0.0),
                    distribution_alignment=True)


@dataclass(frozen=True)
class PseudoLabels:
    """Labels for N images, and which of them are accepted.

    Attributes:
        labels: class indices, (N,) int64; or class probabilities, (N, C) float, where a soft
            labeler made them. Rejected images keep the label that got most votes.
        confidence: probability of that label, (N,) float in [0, 1].
        agreement: share of the votes that the label got, (N,) float in [0, 1].
        mask: True where the label is accepted, (N,) bool.
    """

    labels: Tensor
    confidence: Tensor
    agreement: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, index: slice | Tensor) -> PseudoLabels:
        """The rows that ``index`` (slice, indices or mask) picks."""
        return PseudoLabels(*(value[index] for value in vars(self).values()))

    def to(self, device: torch.device | str) -> PseudoLabels:
        """The same on another device."""
        return PseudoLabels(*(value.to(device) for value in vars(self).values()))

    @staticmethod
    def concatenate(parts: Sequence[PseudoLabels]) -> PseudoLabels:
        """Several batches, one after the other."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return PseudoLabels(*(torch.cat(column) for column in columns))

    @property
    def hard_labels(self) -> Tensor:
        """Class indices, (N,) int64, also where ``labels`` are soft."""
        return self.labels.argmax(1) if self.labels.ndim == 2 else self.labels


@dataclass(frozen=True)
class AMSTLosses:
    """The terms of one training step; scalars that carry gradients unless stated otherwise.

    Attributes:
        total: what to call ``backward()`` on: the sum of the others, the consistency and the
            orthogonality term times their weights.
        supervised: mean cross-entropy of the main head on the real images.
        pseudo: cross-entropy of the main head on the accepted synthetic images, summed and
            divided by the number of *all* synthetic images; 0 where none is accepted.
        consistency: FixMatch term on the synthetic images, summed and divided by their number; 0
            where its weight is 0.
        auxiliary: mean cross-entropy of the auxiliary heads on the real and accepted images,
            which does not change the features.
        orthogonality: mean ``|W_i·W_jᵀ|`` over pairs of auxiliary heads that see the same view.
        accepted_share: share of the synthetic images that are accepted; no gradient; nan if
            there are no synthetic images.
    """

    total: Tensor
    supervised: Tensor
    pseudo: Tensor
    consistency: Tensor
    auxiliary: Tensor
    orthogonality: Tensor
    accepted_share: Tensor

    def as_dict(self) -> dict[str, float]:
        """The scalars as Python floats, for logging."""
        return {name: value.item() for name, value in vars(self).items()}


def agree_and_confident(probabilities: Tensor, rule: VotingRule) -> PseudoLabels:
    """Labels that the heads agree on and are sure of.

    Every head votes for its most probable class, and the class with most votes wins. Of classes
    with equally many votes the one with the higher mean probability wins.

    Args:
        probabilities: class probabilities of each head, (heads, N, C).
        rule: when votes agree, and how sure they must be.

    Source: DreamDA, arXiv:2403.12803, method figure, "consistent and confident".
    """
    heads, images, classes = probabilities.shape
    votes = F.one_hot(probabilities.argmax(2), classes).sum(0)
    # Votes are whole numbers and mean/2 is at most one half: it can break a tie, nothing more.
    winner = (votes + probabilities.mean(0) / 2).argmax(1)
    share = votes.gather(1, winner[:, None]).squeeze(1) / heads
    of_winner = probabilities.gather(2, winner.expand(heads, images)[..., None]).squeeze(2)
    confidence = of_winner.mean(0)
    agreed = share == 1 if rule.agreement == "all" else share > 0.5
    return PseudoLabels(winner, confidence, share,
                        agreed & (confidence >= rule.confidence_threshold))


def consistency_terms(
    weak_logits: Tensor, strong_logits: Tensor, confidence_threshold: float
) -> Tensor:
    """FixMatch's loss of each image: 1[max p_weak ≥ τ]·CE(strong, argmax p_weak), (N,).

    Args:
        weak_logits, strong_logits: of each view, (N, C); the weak ones get no gradient.
        confidence_threshold: τ in [0, 1].

    Source: Sohn et al. 2020, arXiv:2001.07685, eq. 4; its use as L_c is ours.
    """
    confidence, labels = weak_logits.detach().float().softmax(1).max(1)
    terms = F.cross_entropy(strong_logits.float(), labels, reduction="none")
    return terms * (confidence >= confidence_threshold)


def orthogonality_loss(weights: Sequence[Tensor]) -> Tensor:
    """Mean ``|W_i·W_jᵀ|`` over the two pairs of heads that see the same view.

    Args:
        weights: one (C, D) matrix per head: two on the weak view, then two on the strong one.

    Source: Saito et al. 2017 (asymmetric tri-training), arXiv:1702.08400, eq. 1, whose sum is
    replaced by a mean so that the weight does not depend on the number of classes (ours).
    """
    return torch.stack([(first @ second.T).abs().mean()
                        for first, second in (weights[:2], weights[2:])]).mean()


def align_distribution(probabilities: Tensor, average: Tensor, target: Tensor) -> Tensor:
    """Distribution alignment: normalise(p · target / average).

    Args:
        probabilities: (…, C), each row summing to 1.
        average: mean of the model's probabilities over the unlabeled images, (C,).
        target: share of each class that is expected among these images, (C,).

    Source: Berthelot et al. 2020 (ReMixMatch), arXiv:1911.09785, section 3.1.
    """
    # clamp: a class that is never predicted has average 0, and 0/0 is nan.
    aligned = probabilities * (target / average.clamp(min=1e-6))
    return aligned / aligned.sum(-1, keepdim=True).clamp(min=1e-12)


def join_targets(first: Tensor, second: Tensor, classes: int) -> Tensor:
    """Two sets of targets in one tensor; soft labels, (N, C), if either is soft."""
    if first.ndim == second.ndim:
        return torch.cat([first, second])
    soft = [t if t.ndim == 2 else F.one_hot(t, classes) for t in (first, second)]
    return torch.cat([t.float() for t in soft])
