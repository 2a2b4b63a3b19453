"""The calls of version 0.1, whose keywords now live in frozen values."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dreamda_aug.amst import (
    AMSTWrapper,
    ConsistencyRule,
    FeatureLayer,
    HeadViews,
    LabelingRule,
    LossWeights,
    RunPlan,
    SeedLabeler,
    SelfTraining,
    StrongView,
    VotingRule,
    WeakView,
)

CLASSES = 3


def classifier():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))


def train(**options):
    wrapper = AMSTWrapper(classifier())
    optimizer = torch.optim.SGD(wrapper.parameter_groups(0.1))
    labeled = TensorDataset(torch.rand(4, 1, 4, 4), torch.arange(4) % CLASSES)
    return SelfTraining(wrapper, labeled, labeled, optimizer, **options)


def test_every_old_keyword_of_the_wrapper_reaches_its_field():
    with pytest.warns(DeprecationWarning) as caught:
        wrapper = AMSTWrapper(
            classifier(), head_views=("weak", "strong"), labeled_view="strong",
            agreement="majority", confidence="min", confidence_threshold=0.5,
            consistency_threshold=0.6, consistency_on="unlabeled", pseudo_weight=0.1,
            consistency_weight=0.2, orthogonality_weight=0.3, auxiliary_weight=0.4,
        )  # fmt: skip
    assert len(caught) == 1 and caught[0].filename == __file__
    assert wrapper.views == HeadViews(("weak", "strong"), "strong")
    assert wrapper.voting == VotingRule("majority", "min", 0.5)
    assert wrapper.consistency == ConsistencyRule(0.6, "unlabeled")
    assert wrapper.weights == LossWeights(0.1, 0.2, 0.3, 0.4)


def test_features_by_name_become_a_feature_layer():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Linear(6, CLASSES))
    with pytest.warns(DeprecationWarning, match=r"head=FeatureLayer\(layer=…, feature_dim=…\)"):
        old = AMSTWrapper(model, CLASSES, features="1", feature_dim=6)
    new = AMSTWrapper(model, CLASSES, head=FeatureLayer("1", 6))
    assert repr(old) == repr(new) and old.auxiliary_heads[0].in_features == 6


def test_every_old_keyword_of_self_training_reaches_its_field():
    with pytest.warns(DeprecationWarning) as caught:
        training = train(
            batch_size=3, ratio=(1, 2, 0), steps_per_epoch=2, pretraining_epochs=0, epochs=4,
            relabel_every=2, restart=True, seed_vote=True, expected_shares=[0.5, 0.25, 0.25],
            distribution_alignment=True, collapse_factor=2.0,
        )  # fmt: skip
    assert len(caught) == 1 and caught[0].filename == __file__
    assert training.plan == RunPlan(
        pretraining_epochs=0, epochs=4, steps_per_epoch=2, batch_size=3, ratio=(1, 2, 0),
        relabel_every=2, restart=True,
    )  # fmt: skip
    assert training.labeling.rule == LabelingRule(True, True, (0.5, 0.25, 0.25), 2.0)
    with pytest.warns(DeprecationWarning, match=r"plan=RunPlan\(online=…\)"):
        assert train(online=True).plan.online


def test_the_warning_names_the_call_to_write_instead():
    message = (
        r"AMSTWrapper\(confidence_threshold=…, pseudo_weight=…, agreement=…\) is deprecated; write "
        r"AMSTWrapper\(voting=VotingRule\(confidence_threshold=…, agreement=…\), "
        r"weights=LossWeights\(pseudo=…\)\)\."
    )
    with pytest.warns(DeprecationWarning, match=message):
        AMSTWrapper(classifier(), confidence_threshold=0.5, pseudo_weight=2, agreement="all")


def test_an_old_keyword_changes_one_field_of_a_value_that_is_given_too():
    with pytest.warns(DeprecationWarning):
        training = train(plan=RunPlan(batch_size=5), epochs=2)
    assert training.plan == RunPlan(batch_size=5, epochs=2)


def test_calls_of_today_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AMSTWrapper(classifier(), strong=StrongView(operations=1), weak=WeakView(flip=0))
        train(labeler=SeedLabeler(), plan=RunPlan(pretraining_epochs=0, restart=True))


def test_unknown_keywords_and_values_of_another_class_are_refused():
    with pytest.raises(TypeError, match=r"AMSTWrapper\(\) got an unexpected .* 'threshold'"):
        AMSTWrapper(classifier(), threshold=0.5)
    with pytest.raises(TypeError, match=r"SelfTraining\(\) got an unexpected .* 'lr'"):
        train(lr=0.5)
    with pytest.raises(TypeError, match=r"voting must be a VotingRule, got str; write voting=Vot"):
        AMSTWrapper(classifier(), voting="all")
    with pytest.raises(TypeError, match="plan must be a RunPlan, got dict"):
        train(plan={"epochs": 2})
