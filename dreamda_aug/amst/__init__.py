"""Asymmetric multi-head self-training: labels for synthetic images, made by heads that agree.

    wrapper = AMSTWrapper(classifier)
    wrapper.pretraining_loss(images, targets).backward()
    wrapper.losses(images, targets, synthetic).total.backward()
    classifier = wrapper.to_classifier()
"""

from dreamda_aug.amst.features import FeatureLayer
from dreamda_aug.amst.label_prior import LabelPrior
from dreamda_aug.amst.labelers import CLIPLabeler, Labeler, SeedLabeler, SingleHeadLabeler
from dreamda_aug.amst.labeling import LabelingRule
from dreamda_aug.amst.losses import (
    AMSTLosses,
    PseudoLabels,
    agree_and_confident,
    align_distribution,
    consistency_terms,
    orthogonality_loss,
)
from dreamda_aug.amst.plan import RunPlan
from dreamda_aug.amst.pool import MixedBatch, MixedBatchSampler
from dreamda_aug.amst.report import CollapseWarning, RoundReport
from dreamda_aug.amst.rules import ConsistencyRule, HeadViews, LossWeights, VotingRule
from dreamda_aug.amst.self_training import SelfTraining
from dreamda_aug.amst.views import StrongView, WeakView
from dreamda_aug.amst.wrapper import AMSTWrapper

__all__ = [
    "AMSTLosses",
    "AMSTWrapper",
    "CLIPLabeler",
    "CollapseWarning",
    "ConsistencyRule",
    "FeatureLayer",
    "HeadViews",
    "LabelPrior",
    "Labeler",
    "LabelingRule",
    "LossWeights",
    "MixedBatch",
    "MixedBatchSampler",
    "PseudoLabels",
    "RoundReport",
    "RunPlan",
    "SeedLabeler",
    "SelfTraining",
    "SingleHeadLabeler",
    "StrongView",
    "VotingRule",
    "WeakView",
    "agree_and_confident",
    "align_distribution",
    "consistency_terms",
    "orthogonality_loss",
]
