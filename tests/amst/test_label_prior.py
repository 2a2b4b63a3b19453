"""The requested class as evidence: estimates, and Bayes' rule."""

import pytest
import torch
import torch.nn.functional as F

from dreamda_aug.amst import LabelPrior

TRUE = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]])
JUDGE = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])


def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Requested classes, and what a judge that errs sees in the images."""
    generator = torch.Generator().manual_seed(0)
    requested = torch.randint(3, (count,), generator=generator)
    true = torch.multinomial(TRUE[requested], 1, generator=generator).squeeze(1)
    return requested, torch.multinomial(JUDGE[true], 1, generator=generator).squeeze(1)


def test_the_judges_own_errors_are_taken_out():
    requested, seen = draw(30_000)
    found = LabelPrior.estimate(requested, seen, 3, confusion=10_000 * JUDGE).probabilities
    torch.testing.assert_close(found, TRUE, atol=0.03, rtol=0)
    plain = LabelPrior.estimate(requested, seen, 3).probabilities
    torch.testing.assert_close(plain, TRUE @ JUDGE, atol=0.02, rtol=0)


@pytest.mark.parametrize("kept", [0.5, 0.97])
@pytest.mark.parametrize("rng_seed", range(3))
def test_a_judge_known_from_three_images_of_a_class_does_not_condemn_any_class(kept, rng_seed):
    """It is right on two images of three; which class it mistakes for which is chance."""
    generator = torch.Generator().manual_seed(rng_seed)

    def judge(true: torch.Tensor) -> torch.Tensor:
        other = (true + torch.randint(1, 10, true.shape, generator=generator)) % 10
        return torch.where(torch.rand(true.shape, generator=generator) < 2 / 3, true, other)

    requested, real = torch.arange(10).repeat(30), torch.arange(10).repeat(3)
    lost = torch.rand(300, generator=generator) > kept
    true = torch.where(lost, torch.randint(10, (300,), generator=generator), requested)
    confusion = torch.bincount(real * 10 + judge(real), minlength=100).view(10, 10)
    prior = LabelPrior.estimate(requested, judge(true), 10, confusion=confusion)
    found = prior.probabilities.diag()
    share = (true == requested).float().mean()
    assert abs(found.mean() - share) < 0.2
    assert found.min() > share - 0.3


def test_without_images_the_requested_class_is_likely_and_none_impossible():
    nothing = torch.zeros(0, dtype=torch.int64)
    found = LabelPrior.estimate(nothing, nothing, 4).probabilities
    torch.testing.assert_close(found.diag(), torch.full((4,), 0.75))
    assert found.min() > 0.06


def test_bayes_rule_moves_a_doubtful_vote_and_leaves_unknown_images_alone():
    heads = torch.tensor([[[0.5, 0.4, 0.1], [0.5, 0.4, 0.1]]])
    shares = torch.tensor([0.5, 0.25, 0.25])
    prior, requested = LabelPrior(TRUE), torch.tensor([1, -1])
    updated = prior.update(heads, requested, shares)
    softened = (heads[0].log() / prior.temperature_of(heads, requested, shares)).softmax(1)
    odds = softened[0] * TRUE[1] / shares
    torch.testing.assert_close(updated[0, 0], odds / odds.sum())
    torch.testing.assert_close(updated[0, 1], softened[1])
    assert updated[0, 0].argmax() == 1 and heads[0, 0].argmax() == 0


def test_heads_that_are_too_sure_do_not_overrule_a_class_that_was_mostly_kept():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(4, (400,), generator=generator)
    requested = torch.where(torch.rand(400, generator=generator) < 0.95, truth, (truth + 1) % 4)
    seen = torch.where(torch.rand(400, generator=generator) < 0.6, truth, (truth + 2) % 4)
    heads = (0.999 * F.one_hot(seen, 4) + 0.001 / 4)[None]
    prior, shares = LabelPrior(0.95 * torch.eye(4) + 0.05 / 4), torch.full((4,), 0.25)
    assert prior.temperature_of(heads, requested, shares) > 3
    right = (prior.update(heads, requested, shares)[0].argmax(1) == truth).float().mean()
    assert right > 0.9 > 0.7 > (heads[0].argmax(1) == truth).float().mean()
    # heads that are as right as they are sure are believed
    honest = 0.54 * F.one_hot(seen, 4) + 0.36 * F.one_hot((seen + 2) % 4, 4) + 0.1 / 4
    assert prior.temperature_of(honest[None], requested, shares) <= 1.5


def test_one_more_image_changes_the_temperature_a_little():
    """Heads that are too sure are softened more, the more images tell it, without a jump."""
    generator = torch.Generator().manual_seed(0)
    requested = torch.randint(10, (120,), generator=generator)
    seen = torch.where(torch.rand(120, generator=generator) < 0.5, requested, (requested + 3) % 10)
    heads = (0.9999 * F.one_hot(seen, 10) + 0.0001 / 10)[None]
    prior, shares = LabelPrior(0.9 * torch.eye(10) + 0.1 / 10), torch.full((10,), 0.1)
    found = [prior.temperature_of(heads[:, :count], requested[:count], shares)
             for count in range(30, 121)]
    steps = [later / earlier for earlier, later in zip(found, found[1:])]
    assert max(steps) < 1.25 and min(steps) > 0.8
    assert prior.temperature_of(heads[:, :0], requested[:0], shares) < 1.5 < found[-1]


def test_tables_labels_and_counts_out_of_range_are_refused():
    for table in (torch.ones(2, 2), torch.ones(2, 3) / 3, torch.eye(2) * 2 - 0.5):
        with pytest.raises(ValueError, match="LabelPrior.probabilities must be a square matrix"):
            LabelPrior(table)
    with pytest.raises(ValueError, match="requested must lie in"):
        LabelPrior.estimate(torch.tensor([3]), torch.tensor([0]), 3)
    for confusion in (torch.eye(2), -torch.eye(3)):
        with pytest.raises(ValueError, match="confusion must be counts"):
            LabelPrior.estimate(torch.tensor([0]), torch.tensor([0]), 3, confusion=confusion)
