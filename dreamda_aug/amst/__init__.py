"""Asymmetric multi-head self-training: labels for synthetic images, made by heads that agree.

    wrapper = AMSTWrapper(classifier)
    wrapper.pretraining_loss(images, targets).backward()
    wrapper.losses(images, targets, synthetic).total.backward()
    classifier = wrapper.to_classifier()
"""

from dreamda_aug.amst.label_prior import LabelPrior
from dreamda_aug.amst.labeling import CLIPClassifier, Labeler, SeedLabeler, SingleHeadLabeler
from dreamda_aug.amst.rules import AMST_PLUS, PseudoLabels, RunPlan, VotingRule
from dreamda_aug.amst.self_training import SelfTraining
from dreamda_aug.amst.views import PerImage, StrongView, WeakView
from dreamda_aug.amst.wrapper import AMSTWrapper

__all__ = [
    "AMST_PLUS",
    "AMSTWrapper",
    "CLIPClassifier",
    "LabelPrior",
    "Labeler",
    "PerImage",
    "PseudoLabels",
    "RunPlan",
    "SeedLabeler",
    "SelfTraining",
    "SingleHeadLabeler",
    "StrongView",
    "VotingRule",
    "WeakView",
]
