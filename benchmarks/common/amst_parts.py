"""The parts of AMST that ablations change, one at a time."""

from dataclasses import dataclass, replace
from typing import Any

from dreamda_aug.amst import AMST_PLUS, RunPlan, VotingRule


@dataclass(frozen=True)
class AMSTOptions:
    """One way to run AMST.

    Attributes:
        plus: run `AMST_PLUS` in place of the benchmark's own plan.
        label_prior: estimate a `LabelPrior` out of fold, and hand it to `SelfTraining`.
        changes: fields of the plan and their values.
        options: arguments of `AMSTWrapper` and their values.
    """

    plus: bool = False
    label_prior: bool = False
    changes: tuple[tuple[str, Any], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def change(self, plan: RunPlan) -> RunPlan:
        """A benchmark's own plan, or that of AMST+, with what these options change."""
        return replace(AMST_PLUS if self.plus else plan, **dict(self.changes))


def _plan(**changes: Any) -> AMSTOptions:
    return AMSTOptions(changes=tuple(changes.items()))


def _plus(**changes: Any) -> AMSTOptions:
    return replace(_plan(**changes), plus=True, label_prior=True)


def _wrapper(**options: Any) -> AMSTOptions:
    return AMSTOptions(options=tuple(options.items()))


PLUS = _plus()
# Each ingredient on its own, and all but each.
PLUS_PARTS: dict[str, AMSTOptions] = {
    "AMST+": PLUS,
    "AMST+ without alignment": _plus(distribution_alignment=False),
    "AMST+ without label prior": replace(
        _plus(voting=None), label_prior=False, options=(("voting", AMST_PLUS.voting),)),
    "AMST+ with the fixed threshold": _plus(voting=None),
    "AMST+, 1 real image to 7": _plus(ratio=(1, 7, 0.25)),
    "AMST and label prior": AMSTOptions(label_prior=True),
    "AMST and alignment": _plan(distribution_alignment=True),
}
# Row of the table -> what differs.
AMST_PARTS: dict[str, AMSTOptions] = {
    "AMST": AMSTOptions(),
    "no orthogonality": _wrapper(orthogonality_weight=0.0),
    "no consistency": _wrapper(consistency_weight=0.0),
    "consistency threshold 0.8": _wrapper(consistency_threshold=0.8),
    "confidence threshold 0.5": _wrapper(voting=VotingRule(confidence_threshold=0.5)),
    "confidence threshold 0.8": _wrapper(voting=VotingRule(confidence_threshold=0.8)),
    "confidence threshold 0.95": _wrapper(voting=VotingRule(confidence_threshold=0.95)),
}
