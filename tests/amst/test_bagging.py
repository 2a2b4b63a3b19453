"""Heads that learn from labeled images of their own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from dreamda_aug.amst import AMSTWrapper, HeadViews, LossWeights, RunPlan, SelfTraining
from dreamda_aug.amst.bagging import draw_head_weights

CLASSES = 3


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 4, 4, generator=generator), torch.arange(count) % CLASSES


@pytest.fixture
def wrapper():
    torch.manual_seed(0)
    return AMSTWrapper(nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)),
                       weak=lambda batch: batch, strong=lambda batch: batch,
                       views=HeadViews(("weak", "weak")),
                       weights=LossWeights(orthogonality=0.0, consistency=0.0))


@pytest.mark.parametrize("soft", [False, True])
def test_each_head_draws_its_share_of_each_class(soft):
    pixels, targets = images(24)
    labels = F.one_hot(targets, CLASSES).float() if soft else targets
    found = draw_head_weights(TensorDataset(pixels, labels), 5, 0.5, rng_seed=0)
    assert found.shape == (5, 24)
    for label in range(CLASSES):
        of_class = found[:, targets == label]
        assert ((of_class > 0).sum(1) == 4).all()
        # a class counts as before
        torch.testing.assert_close(of_class.sum(1), torch.full((5,), 8.0))
    assert len({tuple(row.tolist()) for row in found > 0}) == 5
    again = draw_head_weights(TensorDataset(pixels, labels), 5, 0.5, rng_seed=0)
    assert torch.equal(found, again)


def test_no_class_is_lost_to_a_head_and_all_images_need_no_weights():
    data = TensorDataset(*images(4))
    found = draw_head_weights(data, 2, 0.1, rng_seed=0)
    assert torch.equal((found[:, [0, 3]] > 0).sum(1), torch.ones(2)) and (found[:, 1:3] == 1).all()
    assert draw_head_weights(data, 2, 1.0, rng_seed=0) is None


def test_the_loss_of_a_head_is_that_of_its_own_images(wrapper):
    pixels, targets = images(6)
    weights = torch.tensor([[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    losses = [F.cross_entropy(head(pixels.flatten(1)), targets, reduction="none")
              for head in wrapper.auxiliary_heads]
    expected = (losses[0][:3].sum() + losses[1][3:].sum()) / 12
    torch.testing.assert_close(wrapper.pretraining_loss(pixels, targets, weights), expected)
    training = wrapper.losses(pixels, targets, head_weights=weights)
    torch.testing.assert_close(training.auxiliary, expected)
    through = wrapper(pixels, targets, stage="pretraining", head_weights=weights)
    torch.testing.assert_close(through, expected)


@pytest.mark.parametrize("wrong", [torch.ones(6), torch.ones(2, 5), -torch.ones(2, 6)])
def test_weights_that_do_not_fit_are_refused(wrapper, wrong):
    for loss in (wrapper.pretraining_loss, wrapper.losses):
        with pytest.raises(ValueError, match=r"head_weights must be .* of shape \(2, 6\)"):
            loss(*images(6), head_weights=wrong)


def test_a_run_hands_each_head_its_own_images(wrapper, monkeypatch):
    """Over all batches, a head hears of its half of the labeled images and of no other."""
    pixels, targets = images(12)
    seen = []
    loss = wrapper.pretraining_loss
    monkeypatch.setattr(wrapper, "pretraining_loss", lambda real, labels, weights: (
        seen.append((real, weights)) or loss(real, labels, weights)))
    training = SelfTraining(
        wrapper, TensorDataset(pixels, targets), TensorDataset(pixels), torch.optim.SGD(
            wrapper.parameters(), 0.1), plan=RunPlan(steps_per_epoch=4, batch_size=6, epochs=1,
                                                     head_share=0.5))  # fmt: skip
    training.run()
    drawn: list[set] = [set(), set()]
    for real, weights in seen:
        rows = [next(i for i in range(12) if torch.equal(pixels[i], image)) for image in real]
        for head in range(2):
            drawn[head] |= {row for row, weight in zip(rows, weights[head]) if weight > 0}
    assert len(drawn[0]) == len(drawn[1]) == 6 and drawn[0] != drawn[1]
    assert (training._head_weights.sum(1) == 12).all()


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_lies_between_nothing_and_all(share):
    with pytest.raises(ValueError, match=r"head_share must lie in \(0, 1\]"):
        RunPlan(head_share=share)
