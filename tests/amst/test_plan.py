import pytest

from dreamda_aug.amst import RunPlan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretraining_epochs": -1}, "pretraining_epochs must be at least 0, got -1"),
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"ratio": (0, 1, 1)}, r"ratio must be three numbers ≥ 0.*got \(0, 1, 1\)"),
        ({"ratio": (1, float("nan"), 1)}, r"ratio must be three numbers ≥ 0.*nan"),
        ({"ratio": [1, 1]}, r"ratio must be three numbers ≥ 0.*got \(1, 1\)"),
        ({"relabel_every": 0}, "relabel_every must be at least 1, got 0"),
        ({"restart": True, "online": True}, "restart=True needs labeling rounds"),
    ],
)
def test_plans_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RunPlan(**options)


@pytest.mark.parametrize(
    ("plan", "processes", "steps"),
    [
        (RunPlan(batch_size=12, ratio=(1, 1, 1)), 1, 13),  # 8 of the pool in each batch
        (RunPlan(batch_size=12, ratio=(1, 1, 1)), 2, 7),
        (RunPlan(batch_size=12, ratio=[1, 0, 0]), 1, 100),
        (RunPlan(steps_per_epoch=5), 2, 5),
    ],
)
def test_an_epoch_goes_through_the_pool_once_unless_its_steps_are_stated(plan, processes, steps):
    assert plan.steps_for(100, processes) == steps


def test_a_plan_is_a_value():
    assert RunPlan(ratio=[1, 2, 1]) == RunPlan(ratio=(1, 2, 1))
    assert hash(RunPlan(ratio=[1, 2, 1])) == hash(RunPlan(ratio=(1, 2, 1)))
