"""The trainer: views, averaged accuracy, and what arms share."""

import torch
from torch import nn

from dreamda_aug.amst import WeakView
from dreamda_aug.evaluation.training import (
    Trainer,
    class_accuracy,
    rand_augment,
    small_classifier,
)


def trainer(**changes):
    pixels = (torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).byte()
    options = {"build": lambda: small_classifier(1, 3), "pixels": pixels,
               "labels": torch.arange(6) % 3, "num_classes": 3, "weak": WeakView(0.0, 0.06),
               "train_steps": 8, "train_batch_size": 6, "learning_rate": 2e-3, "rng_seed": 0,
               "device": "cpu"}
    return Trainer(**options | changes)


def test_accuracy_is_averaged_over_classes():
    always_first = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    nn.init.zeros_(always_first[1].weight)
    always_first[1].bias.data = torch.tensor([1.0, 0.0])
    images = torch.zeros(4, 1, 16, 16, dtype=torch.uint8)
    assert class_accuracy(always_first, images, torch.tensor([0, 0, 0, 1])) == 0.5


def test_arms_start_alike_and_follow_their_name_alone():
    first = trainer()
    same, other = first.fresh(), trainer(rng_seed=1).fresh()
    for a, b, c in zip(first.fresh().parameters(), same.parameters(), other.parameters(),
                       strict=True):
        assert torch.equal(a, b)
        assert a.ndim == 1 or not torch.equal(a, c)
    ends = []
    for name in ("a", "a", "b"):
        torch.manual_seed(len(ends))
        ends.append(first.supervised(name, rand_augment)[0].weight)
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_two_thirds_of_a_batch_are_of_the_pool(monkeypatch):
    seen = []
    pool = torch.full((9, 1, 16, 16), 255, dtype=torch.uint8), torch.arange(9) % 3
    trainer().supervised("a", lambda images: seen.append(images) or images, pool)
    assert len(seen) == 8
    assert all(int((images == 1).all((1, 2, 3)).sum()) == 4 for images in seen)
