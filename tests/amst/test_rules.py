"""The choices that AMST leaves open are checked."""

import pytest

from dreamda_aug.amst import RunPlan, VotingRule


@pytest.mark.parametrize(("kind", "options", "message"), [
    (VotingRule, {"agreement": "some"}, "agreement must be 'all' or 'majority', got 'some'"),
    (VotingRule, {"confidence_threshold": 95}, r"must lie in \[0, 1\], got 95"),
    (RunPlan, {"epochs": -1}, "epochs must be an integer >= 0, got -1"),
    (RunPlan, {"ratio": (0, 1, 1)}, r"ratio must be three numbers >= 0.*got \(0"),
    (RunPlan, {"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\)"),
])
def test_values_out_of_range_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)
