"""The choices that AMST leaves open, as frozen values: views, voting, consistency, weights.

The paper's code was not released. What the paper says is marked [paper], what was published with
another method is marked with its name, and our own choices are marked [ours].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from dreamda_aug.amst.checks import check_choice, check_unit_interval

ViewName = Literal["weak", "strong"]


@dataclass(frozen=True)
class HeadViews:
    """The view of the labeled images that each head learns from.

    Attributes:
        auxiliary: one view per auxiliary head, ``"weak"`` or ``"strong"``; the length is the
            number of auxiliary heads. Default f1ʷ, f2ʷ, f1ˢ, f2ˢ [paper].
        main: the view that the main head sees of real and accepted images [ours; FixMatch's is
            weak].

    Raises:
        ValueError: another word, or no auxiliary head.
    """

    auxiliary: Sequence[ViewName] = ("weak", "weak", "strong", "strong")
    main: ViewName = "weak"

    def __post_init__(self) -> None:
        views = self.auxiliary
        if isinstance(views, str) or not views or not set(views) <= {"weak", "strong"}:
            raise ValueError(
                'HeadViews.auxiliary must hold "weak" or "strong" for each head, at least one; '
                f'such as ("weak", "strong"); got {views!r}.'
            )
        check_choice("HeadViews.main", self.main, ("weak", "strong"))
        object.__setattr__(self, "auxiliary", tuple(views))


@dataclass(frozen=True)
class VotingRule:
    """When the votes of the auxiliary heads make a label that is accepted.

    Attributes:
        agreement: ``"all"`` heads vote for the same class, or more than half of them do,
            ``"majority"`` [ours].
        confidence: the ``"mean"``, ``"min"`` or ``"max"`` over the heads of the probability that
            they give to the label [ours].
        confidence_threshold: smallest confidence of an accepted label, in [0, 1] [ours]. 0.9 and
            not FixMatch's 0.95: four heads rarely agree by chance. On digits (three validation
            seeds, first round) 0.9 accepted 80 % of the images and 98.9 % of these labels were
            right; 0.95 accepted 73 %, 99.6 % of them right.
        threshold: ``"fixed"``: ``confidence_threshold``; ``"adaptive"``: one per class that
            follows the mean confidence over the images that are labeled together [FreeMatch];
            ``"soft"``: every label is accepted, whether votes agree or not, and counts the less
            the further its confidence lies below the mean [SoftMatch]. Fixed thresholds leave
            out the hard images, which have most to teach.

    Raises:
        ValueError: an unknown word, or a threshold outside [0, 1].
    """

    agreement: Literal["all", "majority"] = "all"
    confidence: Literal["mean", "min", "max"] = "mean"
    confidence_threshold: float = 0.9
    threshold: Literal["fixed", "adaptive", "soft"] = "fixed"

    def __post_init__(self) -> None:
        check_choice("threshold", self.threshold, ("fixed", "adaptive", "soft"))
        check_choice("agreement", self.agreement, ("all", "majority"))
        check_choice("confidence", self.confidence, ("mean", "min", "max"))
        check_unit_interval("confidence_threshold", self.confidence_threshold)


@dataclass(frozen=True)
class ConsistencyRule:
    """Which images the consistency term compares in their weak and strong view.

    Attributes:
        confidence_threshold: FixMatch's τ, in [0, 1]: an image counts where the main head gives
            its most probable class at least this probability in the weak view [FixMatch: .95].
        images: ``"all"`` synthetic images, or ``"unlabeled"``, only those that were not
            accepted, as summaries of the paper describe it. In the ablation on digits ``"all"``
            was worth 1.6 points more: the main head may correct the auxiliary heads [ours].

    Raises:
        ValueError: an unknown word, or a threshold outside [0, 1].
    """

    confidence_threshold: float = 0.95
    images: Literal["all", "unlabeled"] = "all"

    def __post_init__(self) -> None:
        name = "ConsistencyRule.confidence_threshold"
        check_unit_interval(name, self.confidence_threshold)
        check_choice("ConsistencyRule.images", self.images, ("all", "unlabeled"))


@dataclass(frozen=True)
class LossWeights:
    """Factors of the terms of the loss; each is finite and ≥ 0.

    Attributes:
        pseudo: of the main head's loss on accepted images [ours: 1].
        consistency: of the consistency term [ours: 1].
        orthogonality: of the mean ``|W_i·W_jᵀ|`` of auxiliary heads that see the same view
            [ours: 0.01].
        auxiliary: of the auxiliary heads' loss in the training stage [ours: 1]. They go on
            learning from real and accepted images while the features change. Their loss does not
            change the features. 0 freezes the auxiliary heads after pretraining.

    Raises:
        ValueError: a weight is negative, infinite or nan.
    """

    pseudo: float = 1.0
    consistency: float = 1.0
    orthogonality: float = 0.01
    auxiliary: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            weight = getattr(self, field.name)
            if not 0 <= weight < float("inf"):
                raise ValueError(
                    f"LossWeights.{field.name} must be finite and ≥ 0, got {weight}; 0 leaves "
                    "the term out."
                )
