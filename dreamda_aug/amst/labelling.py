"""Labelling a pool of images: by the heads of a wrapper, aligned or not, or by another labeler."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dreamda_aug.amst.labelers import Labeler
from dreamda_aug.amst.losses import PseudoLabels, align_distribution
from dreamda_aug.amst.pool import MixedBatch
from dreamda_aug.amst.wrapper import AMSTWrapper

# ReMixMatch averages over 128 batches; this reaches about as far back.
_AVERAGE_DECAY = 0.99


class PoolLabelling:
    """Who labels the pool of ``SelfTraining``, and how.

    Args:
        wrapper: its auxiliary heads label, unless ``labeler`` is given.
        labeler: another one in their place; None: the heads.
        seed_vote: the seed label is a further vote of the heads.
        distribution_alignment: scale the heads' probabilities to ``expected_shares``.
        expected_shares: share of each class expected in the pool, (classes,), on the CPU.

    Attributes:
        labeler: who labels; may be exchanged between epochs.
        average: mean probability of each class, (classes,), on the CPU: over the pool when it was
            labelled last, then a running average over batches.

    Raises:
        ValueError: alignment together with another labeler.
    """

    def __init__(
        self,
        wrapper: AMSTWrapper,
        labeler: Labeler | None,
        seed_vote: bool,
        distribution_alignment: bool,
        expected_shares: Tensor,
    ) -> None:
        if distribution_alignment and labeler is not None:
            raise ValueError(
                "distribution_alignment works on the wrapper's heads; leave labeler out."
            )
        self.wrapper, self.labeler = wrapper, wrapper if labeler is None else labeler
        self.seed_vote, self.distribution_alignment = seed_vote, distribution_alignment
        self.expected_shares = expected_shares
        self.average = expected_shares.clone()

    def label(self, images: Tensor, seed_labels: Tensor) -> PseudoLabels:
        """Labels of one batch; the running average moves on."""
        if self.labeler is not self.wrapper:
            return self.labeler.label(images, seed_labels)
        probabilities = self.wrapper.head_probabilities(images)
        if self.distribution_alignment:
            # A running average, since one batch is too few images to tell the class shares.
            average = self.average.to(probabilities.device)
            average = average.lerp(probabilities.mean((0, 1)), 1 - _AVERAGE_DECAY)
            self.average = average.cpu()
        return self._vote(probabilities, seed_labels)

    def label_pool(
        self, batches: Iterable[MixedBatch], device: torch.device
    ) -> tuple[PseudoLabels, Tensor]:
        """Labels of a whole pool in batches, and its seed labels, both on the CPU."""
        parts, seeds = [], []
        for batch in batches:
            seeds.append(batch.seed_labels)
            batch = batch.to(device)
            if self.distribution_alignment:
                parts.append(self.wrapper.head_probabilities(batch.synthetic).cpu())
            else:
                parts.append(self.label(batch.synthetic, batch.seed_labels).to("cpu"))
        seed_labels = torch.cat(seeds)
        if not self.distribution_alignment:
            return PseudoLabels.concatenate(parts), seed_labels
        # The heads' probabilities were kept, since alignment needs all of them.
        probabilities = torch.cat(parts, dim=1)
        self.average = probabilities.mean((0, 1))
        return self._vote(probabilities, seed_labels), seed_labels

    def _vote(self, probabilities: Tensor, seed_labels: Tensor) -> PseudoLabels:
        if self.distribution_alignment:
            average, expected = (
                shares.to(probabilities.device) for shares in (self.average, self.expected_shares)
            )
            probabilities = align_distribution(probabilities, average, expected)
        return self.wrapper.vote(probabilities, seed_labels if self.seed_vote else None)
