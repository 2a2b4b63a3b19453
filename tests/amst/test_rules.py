"""Every rule and loss term against values worked out by hand."""

import math

import torch

from dreamda_aug.amst import VotingRule
from dreamda_aug.amst.rules import (
    agree_and_confident,
    align_distribution,
    consistency_terms,
    orthogonality_loss,
)

# Four heads, four images, three classes:
# 0: all say class 0, sure; 1: all say class 1, two of them hardly; 2: three say 2, one says 0;
# 3: two say 0, two say 1.
PROBABILITIES = torch.tensor([
    [[0.96, 0.02, 0.02], [0.10, 0.90, 0.00], [0.0, 0.1, 0.9], [0.9, 0.1, 0.0]],
    [[0.98, 0.01, 0.01], [0.30, 0.50, 0.20], [0.0, 0.2, 0.8], [0.8, 0.2, 0.0]],
    [[0.94, 0.03, 0.03], [0.20, 0.80, 0.00], [0.1, 0.0, 0.9], [0.4, 0.6, 0.0]],
    [[0.92, 0.04, 0.04], [0.30, 0.60, 0.10], [0.6, 0.0, 0.4], [0.4, 0.6, 0.0]],
])


def test_all_heads_must_agree_and_their_mean_must_be_sure():
    result = agree_and_confident(PROBABILITIES, VotingRule(confidence_threshold=0.9))
    assert result.labels.tolist() == [0, 1, 2, 0]
    assert result.agreement.tolist() == [1.0, 1.0, 0.75, 0.5]
    torch.testing.assert_close(result.confidence, torch.tensor([0.95, 0.7, 0.75, 0.625]))
    assert result.mask.tolist() == [True, False, False, False]
    majority = VotingRule(agreement="majority", confidence_threshold=0.0)
    assert agree_and_confident(PROBABILITIES, majority).mask.tolist() == [True, True, True, False]


def test_a_confidence_exactly_at_the_threshold_is_accepted():
    probabilities = torch.tensor([[[0.75, 0.25]]])
    at, above = VotingRule(confidence_threshold=0.75), VotingRule(confidence_threshold=0.7501)
    assert agree_and_confident(probabilities, at).mask.all()
    assert not agree_and_confident(probabilities, above).mask.any()


def test_consistency_counts_only_sure_images_and_leaves_the_weak_view_alone():
    # softmax([ln 3, 0]) = [3/4, 1/4];  softmax([0, ln 9]) = [1/10, 9/10]
    weak = torch.tensor([[math.log(3), 0.0], [0.0, math.log(9)]], requires_grad=True)
    strong = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], requires_grad=True)
    terms = consistency_terms(weak, strong, 0.8)
    # the first image is not sure enough; the second is sure of class 1, where strong has 1/4.
    torch.testing.assert_close(terms, torch.tensor([0.0, math.log(4)]))
    torch.testing.assert_close(
        consistency_terms(weak, strong, 0.7), torch.tensor([math.log(2), math.log(4)])
    )
    terms.sum().backward()
    assert weak.grad is None
    torch.testing.assert_close(strong.grad, torch.tensor([[0.0, 0.0], [0.75, -0.75]]))


def test_orthogonality_is_the_mean_absolute_product_within_a_view():
    first = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    second = torch.tensor([[1.0, -1.0], [3.0, 0.0]])
    # mean |first · secondᵀ| = mean [[1, 3], [2, 0]] = 6/4, mean |first · firstᵀ| = (1 + 4)/4
    assert orthogonality_loss([first, second, first, first]).item() == (1.5 + 1.25) / 2


def test_alignment_brings_the_average_to_the_target():
    probabilities = torch.tensor([[0.8, 0.2], [0.6, 0.4]])
    # p·target/average = [.8·.5/.7, .2·.5/.3], [.6·.5/.7, .4·.5/.3], then normalised
    aligned = align_distribution(probabilities, torch.tensor([0.7, 0.3]), torch.tensor([0.5, 0.5]))
    first, second = 0.8 / 0.7 / (0.8 / 0.7 + 0.2 / 0.3), 0.6 / 0.7 / (0.6 / 0.7 + 0.4 / 0.3)
    torch.testing.assert_close(
        aligned, torch.tensor([[first, 1 - first], [second, 1 - second]])
    )
    never = torch.tensor([[1.0, 0.0]])  # one class is not predicted at all
    assert align_distribution(never, never[0], torch.tensor([0.5, 0.5])).isfinite().all()
