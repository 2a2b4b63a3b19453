"""The rules and loss terms of asymmetric multi-head self-training, each a pure function."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamda_aug.amst.rules import ViewName, VotingRule


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
        pseudo_labels: the labels used for the synthetic images; None if there are none.
    """

    total: Tensor
    supervised: Tensor
    pseudo: Tensor
    consistency: Tensor
    auxiliary: Tensor
    orthogonality: Tensor
    accepted_share: Tensor
    pseudo_labels: PseudoLabels | None

    def as_dict(self) -> dict[str, float]:
        """The scalars as Python floats, for logging."""
        return {field.name: getattr(self, field.name).item() for field in fields(self)
                if field.name != "pseudo_labels"}


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


def orthogonality_loss(weights: Sequence[Tensor], views: Sequence[ViewName]) -> Tensor:
    """Mean ``|W_i·W_jᵀ|`` over all pairs of heads that see the same view.

    Args:
        weights: one (C, D) matrix per head.
        views: the view of each head, in the same order.

    Source: Saito et al. 2017 (asymmetric tri-training), arXiv:1702.08400, eq. 1, whose sum is
    replaced by a mean so that the weight does not depend on the number of classes (ours).
    """
    return torch.stack([
        (weights[i] @ weights[j].T).abs().mean()
        for i, j in itertools.combinations(range(len(weights)), 2) if views[i] == views[j]]).mean()


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
