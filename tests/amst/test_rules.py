import dataclasses

import pytest

from dreamda_aug.amst import AMST_PLUS, RunPlan, VotingRule


@pytest.mark.parametrize(("kind", "options", "message"), [
    (VotingRule, {"agreement": "some"}, "agreement must be 'all' or 'majority', got 'some'"),
    (VotingRule, {"confidence_threshold": 95}, r"must lie in \[0, 1\], got 95"),
    (RunPlan, {"epochs": -1}, "epochs must be an integer >= 0, got -1"),
    (RunPlan, {"steps_per_epoch": 0}, "steps_per_epoch must be an integer >= 1, got 0"),
    (RunPlan, {"ratio": (0, 1, 1)}, r"ratio must be three numbers >= 0.*got \(0"),
    (RunPlan, {"ratio": (1, float("nan"), 1)}, r"ratio must be .*nan"),
    (RunPlan, {"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\)"),
    (RunPlan, {"online": "yes"}, "online must be True or False, got 'yes'"),
])
def test_values_out_of_range_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(kind(), **options)


def test_plans_are_values():
    assert RunPlan(ratio=[1, 2, 1]) == RunPlan(ratio=(1, 2, 1))
    assert len({AMST_PLUS, dataclasses.replace(AMST_PLUS)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        AMST_PLUS.epochs = 2
