"""The penalty and temperature that labeled images choose."""

import pytest
import torch

from benchmarks.accuracy.cross_validation import CHOICES, cross_validated_probe
from dreamda_aug.metrics.features import pixel_features


def test_a_probe_has_one_of_the_choices_and_needs_two_images_of_a_class():
    targets = torch.arange(12) % 3
    shown = torch.rand(12, 1, 4, 4) * 0.3 + targets[:, None, None, None] * 0.2
    probe = cross_validated_probe(pixel_features(), shown, targets, 3)
    assert (probe(shown).argmax(1) == targets).float().mean() > 0.6 and 1.0 in CHOICES
    with pytest.raises(ValueError, match="nothing to cross-validate on"):
        cross_validated_probe(pixel_features(), shown[:3], torch.tensor([0, 0, 1]), 2)
