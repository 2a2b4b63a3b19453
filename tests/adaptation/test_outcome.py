"""The verdict: how often it is wrong where nothing helped, and what it makes of little."""

import pytest
import scipy.stats
import torch

from dreamda_aug.adaptation.adapting import best_gain


@pytest.mark.parametrize("images, drifts", [(5, False), (40, True)])
def test_nothing_is_called_help_in_one_of_twenty_cases_at_most(images, drifts):
    """Losses change at random from step to step, or around the first one, and never on average."""
    generator = torch.Generator().manual_seed(images)
    found = []
    for _ in range(400):
        changes = torch.randn(8, images, generator=generator)
        changes[0] = 0
        fell, by_chance = best_gain(1 + (changes.cumsum(0) if drifts else changes))
        found.append(fell > by_chance)
    # 29 of 400 is the 97.5 % quantile of a rate of 5 %
    assert sum(found) <= scipy.stats.binom.ppf(0.975, 400, 0.05) == 29


@pytest.mark.parametrize("count", [6, 11, 40])
def test_one_step_is_judged_as_by_scipys_permutation_test(count):
    generator = torch.Generator().manual_seed(count)
    for shift in (0.2, 0.4, 0.6):
        before = torch.rand(count, generator=generator).double()
        after = before - (torch.randn(count, generator=generator).double() + shift)
        test = scipy.stats.permutation_test(
            (before - after,), lambda fell, axis: fell.mean(axis), permutation_type="samples",
            alternative="greater", n_resamples=20_000, vectorized=True)
        fell, by_chance = best_gain(torch.stack([before, after]))
        assert fell == pytest.approx(max(0, (before - after).mean().item()))
        if abs(test.pvalue - 0.05) > 0.01:
            assert (fell > by_chance) is bool(test.pvalue < 0.05)


def test_four_images_can_show_nothing_and_five_that_all_gain_can():
    for count in (2, 3, 4, 5):
        measured = torch.stack([torch.ones(count), torch.linspace(0.5, 0.6, count)])
        fell, by_chance = best_gain(measured)
        assert (fell > by_chance) is (count == 5)
