"""How the arms of the accuracy study are trained."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.accuracy.arms import CHOSEN, Arm, arms_of
from benchmarks.accuracy.runs import labeler_of
from benchmarks.accuracy.tasks import TASKS, split
from benchmarks.accuracy.training import replaced, train
from dreamda_aug.amst import LabelPrior

# Each way to label under each way to augment once; the diffusion classifier needs classes.
ARMS = [replace(arm, view="affine" if arm.view == CHOSEN else arm.view)
        for arm in arms_of(TASKS["usps_semi"])
        if arm.recipe in ("", "copies", "tuned") and arm.labels != "prior" and not arm.frozen]
ARMS += [Arm("replace", "tuned", replace=0.5), Arm("together", "tuned", together=True)]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_arm_takes_the_tasks_steps(arm, setup_with_model, tiny, noise_pool):
    task = replace(tiny, unlabeled=10)
    pool = noise_pool(18 if arm.recipe else 0)
    images = split(task, task.read(Path()), 2, 0)
    prior = LabelPrior(torch.full((3, 3), 1 / 3)) if arm.amst.label_prior else None
    outcome = train(task, arm, images, pool, pool.seed_labels.clone(), 0,
                    labeler=labeler_of(setup_with_model, arm, images, pool), label_prior=prior)
    assert outcome.steps == task.steps
    assert outcome.classifier(torch.rand(2, 1, 16, 16)).shape == (2, 3)


def test_a_share_of_the_images_is_replaced_by_one_of_their_own_replicas():
    versions = torch.arange(4.0) + 10 * torch.arange(2000.0)[:, None]  # seed image and 3 replicas
    picked = replaced(lambda images: images, 0.3)(versions[..., None, None, None]).flatten()
    which = picked - 10 * torch.arange(2000.0)
    assert abs((which > 0).float().mean() - 0.3) < 0.05
    assert which.unique().tolist() == [0, 1, 2, 3]
