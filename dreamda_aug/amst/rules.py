"""The choices that AMST leaves open, as frozen values.

The paper's code was not released. Choices of the paper are marked [paper], those of another
published method with its name, and our own [ours].
"""

from dataclasses import dataclass
from typing import Literal

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
        ema_decay: decay of an exponential moving average of all weights, in [0, 1), or None for no
            average. The averaged weights label the pool, and ``run`` leaves them in the wrapper
            at the end [Mean Teacher].
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
    ema_decay: float | None = None
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
        if self.ema_decay is not None:
            real("ema_decay", self.ema_decay, "lie in [0, 1), or be None", 0, 1 - 1e-9)


# AMST+ of our study, for images made by a model that was conditioned on the class: with a
# `LabelPrior` nearly all labels are right, and the images that the heads doubt teach most.
# The heads learn for an eighth of the steps before they label; the prior makes up for the rest.
AMST_PLUS = RunPlan(pretraining_epochs=1, epochs=7, relabel_every=7, ratio=(1, 1.75, 0.25),
                    voting=VotingRule("majority", confidence_threshold=0.0),
                    distribution_alignment=True)
