"""How arms are trained: equal steps, equal starts, and the labels that each arm is meant to use."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.accuracy import training as training_module
from benchmarks.accuracy.arms import CHOSEN, Arm, arms_of
from benchmarks.accuracy.runs import labeler_of
from benchmarks.accuracy.tasks import TASKS, split
from benchmarks.accuracy.training import ROUNDS, STAGES, Training

# Each way to label under each way to augment once; the diffusion classifier needs classes.
ARMS = [replace(arm, view="affine" if arm.view == CHOSEN else arm.view)
        for arm in arms_of(TASKS["usps_semi"])
        if arm.recipe in ("", "copies", "tuned") and arm.labels != "prior"]  # fmt: skip


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_arm_takes_the_tasks_steps(arm, setup_with_model, tiny, noise_pool):
    task = replace(tiny, unlabeled=10)
    pool = noise_pool(18 if arm.recipe else 0)
    images = split(task, task.read(Path()), 2, 0)
    training = Training(task, arm, images, pool, pool.seed_labels.clone(), 0,
                        labeler=labeler_of(setup_with_model, arm, images, pool))
    before = [p.clone() for p in training.model.parameters()]
    outcome = training.run()
    assert outcome.steps == task.steps
    after = list(outcome.classifier.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert outcome.classifier(torch.rand(2, 1, 16, 16)).shape == (2, 3)


def test_a_pool_labeled_by_the_probe_is_accepted_whole(
    setup_with_model, tiny, images, noise_pool
):
    pool = noise_pool(18)
    arm = next(arm for arm in ARMS if arm.labels == "probe")
    labeler = labeler_of(setup_with_model, arm, images, pool)
    expected = labeler.label(pool.pixels.float() / 255).hard_labels
    outcome = Training(tiny, arm, images, pool, expected, 0, labeler=labeler).run()
    assert outcome.accepted == outcome.labels_right == 1


def test_all_arms_start_from_the_same_weights(tiny, images, noise_pool):
    first, second = (Training(tiny, arm, images, noise_pool(18), torch.arange(18), 0).model
                     for arm in ARMS[:2])  # fmt: skip
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_third_of_each_batch_are_real_images(monkeypatch, tiny, images, noise_pool):
    seen = []
    monkeypatch.setattr(Training, "_view", lambda self, pixels: seen.append(pixels) or
                        pixels.float() / 255)  # fmt: skip
    pool = noise_pool(18)
    Training(tiny, Arm("seed labels", "tuned"), images, pool, pool.seed_labels, 0).run()
    made = {tuple(image.flatten().tolist()) for image in pool.pixels}
    assert len(seen) == tiny.steps
    for batch in seen:
        assert sum(tuple(image.flatten().tolist()) in made for image in batch) == 4


def test_soft_labels_are_the_single_heads_probabilities(monkeypatch, tiny, images, noise_pool):
    targets = []
    plain = training_module.F.cross_entropy
    monkeypatch.setattr(training_module.F, "cross_entropy",
                        lambda x, y: targets.append(y) or plain(x, y))  # fmt: skip
    unknown = torch.full((18,), -1)
    Training(tiny, Arm("soft", "noise", "soft"), images, noise_pool(18), unknown, 0).run()
    first = tiny.steps * (STAGES - ROUNDS) // STAGES
    assert all(hard.dtype == torch.int64 for hard in targets[:first])
    assert len(targets) == tiny.steps
    for soft in targets[first:]:
        torch.testing.assert_close(soft.sum(1), torch.ones(6))
        assert 0 < ((soft > 0) & (soft < 1)).any(1).sum() <= 4
