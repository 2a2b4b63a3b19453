"""AMST on digits: what its runs have in common, and what each arm learns from."""

import pytest
import torch

from benchmarks.common.amst_parts import AMST_PARTS
from benchmarks.digits import arms, data
from benchmarks.digits.arms import ARMS, run_arm
from benchmarks.digits.data import PER_CLASS, RunData, train_model

# two steps are too few for heads that agree
pytestmark = pytest.mark.filterwarnings("ignore::dreamda_aug.amst.labeling.CollapseWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model that was hardly trained."""
    folder = tmp_path_factory.mktemp("digits")
    train_model(folder, steps=2)
    return folder


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch):
    monkeypatch.setattr(arms, "STEPS", 2)
    monkeypatch.setitem(data.GENERATION, "steps", 5)


def test_validation_looks_at_no_test_digit(folder):
    test, validation = (RunData(0, folder, which) for which in (False, True))
    assert test.targets.bincount().tolist() == [PER_CLASS] * 10
    assert torch.equal(test.real, validation.real)
    assert len(test.held_out) == 797 and len(validation.held_out) == 1000 - 10 * PER_CLASS
    held = {tuple(image.flatten().tolist()) for image in validation.held_out}
    assert not held & {tuple(image.flatten().tolist()) for image in validation.real}


@pytest.mark.parametrize("arm", [*ARMS, *list(AMST_PARTS)[1:]])
def test_every_arm_takes_the_same_number_of_steps(arm, folder):
    training = run_arm(RunData(0, folder, False), arm)
    assert training.scheduler.last_epoch == arms.STEPS * (1 + arms.ROUNDS)
