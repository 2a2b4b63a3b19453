import dataclasses

import pytest

from dreamda_aug.amst import ConsistencyRule, HeadViews, LossWeights, VotingRule


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HeadViews(auxiliary=()), r"auxiliary must hold .* at least one.*got \(\)"),
        (lambda: HeadViews(auxiliary="weak"), r"auxiliary must hold .*got 'weak'"),
        (lambda: HeadViews(auxiliary=("weak", "mild")), r"auxiliary must hold .*'mild'"),
        (lambda: HeadViews(main="none"), "main must be \"weak\" or \"strong\", got 'none'"),
        (lambda: VotingRule(agreement="some"), "agreement must be \"all\" or .* got 'some'"),
        (lambda: VotingRule(confidence="median"), "confidence must be \"mean\" or .* 'median'"),
        (
            lambda: VotingRule(confidence_threshold=95),
            r"confidence_threshold must lie in \[0, 1\], got 95; 95 % is 0.95",
        ),
        (
            lambda: ConsistencyRule(confidence_threshold=-1),
            r"ConsistencyRule.confidence_threshold must lie in \[0, 1\], got -1",
        ),
        (lambda: ConsistencyRule(images="x"), "images must be \"all\" or .* got 'x'"),
        (lambda: LossWeights(pseudo=float("nan")), "pseudo must be finite and ≥ 0, got nan"),
        (lambda: LossWeights(consistency=-1), "consistency must be finite and ≥ 0, got -1"),
        (lambda: LossWeights(orthogonality=-0.1), "orthogonality must be finite .* got -0.1"),
        (lambda: LossWeights(auxiliary=float("inf")), "auxiliary must be finite .* got inf"),
    ],
)
def test_rules_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_rules_are_values_that_can_be_compared_and_not_changed():
    assert HeadViews(["weak", "strong"]) == HeadViews(("weak", "strong"))
    assert len({HeadViews(["weak"]), HeadViews(("weak",)), VotingRule(), VotingRule()}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        LossWeights().pseudo = 2.0


def test_a_changed_copy_is_checked_too():
    with pytest.raises(ValueError, match="got 2"):
        dataclasses.replace(VotingRule(), confidence_threshold=2)
