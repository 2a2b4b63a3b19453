"""The penalty and temperature that labeled images choose."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.accuracy.cross_validation import CHOICES, cross_validate, cross_validated_probe
from dreamda_aug.metrics.features import pixel_features


def test_the_penalty_is_the_one_that_scikit_learn_finds_on_the_same_folds():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    targets = (features[:, :3] + 2 * torch.randn(60, 3, generator=generator)).argmax(1)
    choices = (0.01, 0.1, 1.0, 100.0)
    found, temperature = cross_validate(features, targets, 3, 3, choices)
    fold = torch.zeros_like(targets)
    for label in range(3):
        rows = (targets == label).nonzero().flatten()
        fold[rows] = torch.arange(len(rows)) % 3
    losses = {}
    for penalty in choices:
        logits = torch.zeros(60, 3, dtype=torch.float64)
        for number in range(3):
            fit = LogisticRegression(C=penalty, tol=1e-9, max_iter=1000).fit(
                features[fold != number], targets[fold != number])
            logits[fold == number] = torch.from_numpy(
                fit.decision_function(features[fold == number]))
        losses[penalty] = min(torch.nn.functional.cross_entropy(logits / t, targets).item()
                              for t in torch.logspace(-1, 1, 21).tolist())
    assert found == min(losses, key=losses.get)
    assert 0.1 <= temperature <= 10


def test_a_probe_has_one_of_the_choices_and_needs_two_images_of_a_class():
    targets = torch.arange(12) % 3
    shown = torch.rand(12, 1, 4, 4) * 0.3 + targets[:, None, None, None] * 0.2
    probe = cross_validated_probe(pixel_features(), shown, targets, 3)
    assert (probe(shown).argmax(1) == targets).float().mean() > 0.6 and 1.0 in CHOICES
    with pytest.raises(ValueError, match="nothing to cross-validate on"):
        cross_validated_probe(pixel_features(), shown[:3], torch.tensor([0, 0, 1]), 2)
