"""The plan of a self-training run: how long its stages are, and what a batch holds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dreamda_aug.amst.checks import check_least, check_ratio
from dreamda_aug.amst.pool import batch_counts


@dataclass(frozen=True)
class RunPlan:
    """The stages of ``SelfTraining``, and what a batch holds.

    An epoch is ``steps_per_epoch`` optimizer steps. First come ``pretraining_epochs`` on real
    images alone, then ``epochs`` with synthetic images.

    Attributes:
        pretraining_epochs: length of the first stage, ≥ 0.
        epochs: length of the training stage, ≥ 0.
        steps_per_epoch: ≥ 1. None: the number of steps that goes through the pool once.
        batch_size: images per batch and process, ≥ 2.
        ratio: real : accepted : unlabeled images in a batch [ours]. Where one of the last two
            is empty, the other takes its place.
        relabel_every: number of training epochs between two labeling rounds, ≥ 1. Each round
            rebuilds the accepted set from nothing [ours].
        restart: after every labeling round go back to the weights that the wrapper came with
            (random or pretrained), so that a round's wrong labels do not live on in the weights.
            Each round must then be long enough to train a classifier. In our ablations more of
            the accepted labels were right and accuracy was lower: by 1 point on digits, by 2 to 5
            with rounds of 160 steps [Curriculum Labeling, arXiv:2001.06001; off by default].
        online: label every batch when it is drawn, for a pool whose images are new in every
            epoch. There are no labeling rounds then, and a batch is real : (accepted +
            unlabeled).
        ema_decay: decay of an exponential moving average of all weights, in [0, 1): the average
            labels the pool, and ``run`` leaves it in the wrapper at the end [Mean Teacher]. None:
            the weights themselves do.
        head_share: share of the labeled images of each class that each auxiliary head learns
            from, a draw of its own, in (0, 1]. Heads that have learned the same few images agree
            in their mistakes too [bagging, Breiman 1996; off by default].

    Raises:
        ValueError: a number is out of range, or ``restart`` meets ``online``.
    """

    pretraining_epochs: int = 1
    epochs: int = 3
    steps_per_epoch: int | None = None
    batch_size: int = 64
    ratio: tuple[float, float, float] = (1, 1, 1)
    relabel_every: int = 1
    restart: bool = False
    online: bool = False
    ema_decay: float | None = None
    head_share: float = 1.0

    def __post_init__(self) -> None:
        check_least("pretraining_epochs", self.pretraining_epochs, 0)
        check_least("epochs", self.epochs, 0)
        check_least("steps_per_epoch", self.steps_per_epoch, 1)
        check_least("batch_size", self.batch_size, 2)
        check_ratio(self.ratio)
        check_least("relabel_every", self.relabel_every, 1)
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1) or be None, got {self.ema_decay}.")
        if not 0 < self.head_share <= 1:
            raise ValueError(f"head_share must lie in (0, 1], got {self.head_share}.")
        if self.restart and self.online:
            raise ValueError(
                "restart=True needs labeling rounds, and online=True has none; leave one out."
            )
        object.__setattr__(self, "ratio", tuple(self.ratio))

    def steps_for(self, pool_size: int, processes: int = 1) -> int:
        """Optimizer steps of one epoch over a pool, shared by this number of processes."""
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch
        _, accepted, unlabeled = batch_counts(self.batch_size, self.ratio, [1, 1, 1])
        return math.ceil(pool_size / (processes * max(1, accepted + unlabeled)))
