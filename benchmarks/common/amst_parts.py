"""The parts of AMST that ablations change, one at a time."""

from dataclasses import dataclass, field, replace

from torch import nn

from dreamda_aug.amst import (
    AMSTWrapper,
    ConsistencyRule,
    HeadViews,
    LabelingRule,
    LossWeights,
    RunPlan,
    VotingRule,
)
from dreamda_aug.amst.views import View


@dataclass(frozen=True)
class AMSTOptions:
    """One way to run AMST.

    Attributes:
        views: as in `AMSTWrapper`.
        voting: as in `AMSTWrapper`.
        consistency: as in `AMSTWrapper`.
        weights: as in `AMSTWrapper`.
        labeling: as in `SelfTraining`.
        relabel_every: as in `RunPlan`; None: as the benchmark's own plan has it.
        restart: likewise.
        ratio: likewise.
        ema_decay: as in `RunPlan`.
        head_share: as in `RunPlan`.
        brief: the heads learn for an eighth of the steps before they label, not for a quarter.
        label_prior: the labeling rule gets a `LabelPrior`, estimated out of fold.
    """

    views: HeadViews = field(default_factory=HeadViews)
    voting: VotingRule = field(default_factory=VotingRule)
    consistency: ConsistencyRule = field(default_factory=ConsistencyRule)
    weights: LossWeights = field(default_factory=LossWeights)
    labeling: LabelingRule = field(default_factory=LabelingRule)
    relabel_every: int | None = None
    restart: bool | None = None
    ratio: tuple[float, float, float] | None = None
    ema_decay: float | None = None
    head_share: float = 1.0
    brief: bool = False
    label_prior: bool = False

    def wrap(self, classifier: nn.Module, weak: View, strong: View) -> AMSTWrapper:
        """A classifier with auxiliary heads."""
        return AMSTWrapper(classifier, weak=weak, strong=strong, views=self.views,
                           voting=self.voting, consistency=self.consistency, weights=self.weights)

    def change(self, plan: RunPlan) -> RunPlan:
        """A benchmark's own plan, with what these options change."""
        changes = {"relabel_every": self.relabel_every, "restart": self.restart,
                   "ratio": self.ratio, "ema_decay": self.ema_decay,
                   "head_share": self.head_share}
        return replace(plan, **{name: value for name, value in changes.items()
                                if value is not None})  # fmt: skip


# What later work adds, see `RunPlan` and `LabelingRule` for the sources, and all labels accepted
# that most heads vote for: where the prior has made them right, the doubtful ones teach most. Of
# images that no class was asked for it knows nothing.
AMST_PLUS = AMSTOptions(
    voting=VotingRule(agreement="majority", confidence_threshold=0.0),
    labeling=LabelingRule(distribution_alignment=True, unlabeled_voting=VotingRule()),
    ema_decay=0.99,
    brief=True,
    label_prior=True,
)
# Each ingredient on its own, and all but each.
PLUS_PARTS: dict[str, AMSTOptions] = {
    "AMST+": AMST_PLUS,
    "AMST+ without averaged weights": replace(AMST_PLUS, ema_decay=None),
    "AMST+, heads learn for a quarter": replace(AMST_PLUS, brief=False),
    "AMST+ without alignment": replace(
        AMST_PLUS, labeling=replace(AMST_PLUS.labeling, distribution_alignment=False)),
    "AMST+ without label prior": replace(AMST_PLUS, label_prior=False),
    "AMST+ with soft thresholds": replace(AMST_PLUS, voting=VotingRule(threshold="soft")),
    "AMST+ with adaptive thresholds": replace(AMST_PLUS, voting=VotingRule(threshold="adaptive")),
    "AMST+ with the fixed threshold": replace(AMST_PLUS, voting=VotingRule()),
    "AMST+, 1 real image to 7": replace(AMST_PLUS, ratio=(1, 7, 0.25)),
    "AMST+, heads on halves": replace(AMST_PLUS, head_share=0.5),
    "AMST and averaged weights": AMSTOptions(ema_decay=0.99),
    "AMST and label prior": AMSTOptions(label_prior=True),
    "AMST and alignment": AMSTOptions(labeling=LabelingRule(distribution_alignment=True)),
    "AMST and soft thresholds": AMSTOptions(voting=VotingRule(threshold="soft")),
    "AMST, heads on halves": AMSTOptions(head_share=0.5),
}
# Row of the table -> what differs.
AMST_PARTS: dict[str, AMSTOptions] = {
    "AMST": AMSTOptions(),
    "1 head": AMSTOptions(HeadViews(("weak",))),
    "2 heads": AMSTOptions(HeadViews(("weak", "strong"))),
    "4 heads, same view": AMSTOptions(HeadViews(("weak",) * 4)),
    "no orthogonality": AMSTOptions(weights=LossWeights(orthogonality=0.0)),
    "no consistency": AMSTOptions(weights=LossWeights(consistency=0.0)),
    "consistency on unlabeled only": AMSTOptions(
        consistency=ConsistencyRule(images="unlabeled")),
    "consistency threshold 0.8": AMSTOptions(consistency=ConsistencyRule(0.8)),
    "auxiliary heads frozen, no restart": AMSTOptions(
        weights=LossWeights(auxiliary=0.0), restart=False),
    "confidence threshold 0.5": AMSTOptions(voting=VotingRule(confidence_threshold=0.5)),
    "confidence threshold 0.8": AMSTOptions(voting=VotingRule(confidence_threshold=0.8)),
    "confidence threshold 0.95": AMSTOptions(voting=VotingRule(confidence_threshold=0.95)),
    "no restart": AMSTOptions(restart=False),
    "seed label votes": AMSTOptions(labeling=LabelingRule(seed_vote=True)),
}
