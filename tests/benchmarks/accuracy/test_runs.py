"""Single runs: cached by everything that they depend on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.accuracy.arms import Arm
from benchmarks.accuracy.pools import PoolSpec
from benchmarks.accuracy.runs import (
    Run,
    Setup,
    hard_third,
    images_of,
    pool_of,
    result,
    result_path,
)
from dreamda_aug import Settings
from dreamda_aug.evaluation.training import Trainer

REAL = Arm("real only", view="none")


def test_a_run_is_trained_once_and_again_only_when_something_changed(tmp_path, monkeypatch, tiny):
    setup = Setup(tiny, Path(), tmp_path)
    run = Run(Arm("duplicate-real", "copies", view="none"), PoolSpec("copies", 3), 2, 0)
    first = result(setup, run)
    assert set(first) >= {"arm", "shots", "rng_seed", "validation", "test", "commit", "machine"}
    monkeypatch.setattr(Trainer, "fit", None)  # would fail if it were called
    assert result(setup, run) == first
    others = [replace(run, rng_seed=1), replace(run, spec=PoolSpec("copies", 4)),
              replace(run, arm=replace(run.arm, weak=(0.0, 0.0)))]  # fmt: skip
    setups = [setup, setup, setup, replace(setup, task=replace(tiny, learning_rate=1e-2))]
    paths = [result_path(s, r) for s, r in zip(setups, [*others, run], strict=True)]
    assert len({*paths, result_path(setup, run)}) == 5


def test_an_adapted_prior_makes_other_images_and_is_adapted_once(setup_with_model, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr("dreamda_aug.adaptation.adapting.DEFAULT_STEPS", 4)
    settings = Settings(steps=3, strength=0.5, replay=0.0, noise_scale=0.0)
    plain, adapted, free = (
        pool_of(setup_with_model, Run(Arm(kind, kind), PoolSpec(kind, 1, settings), 2, 0)).pixels
        for kind in ("replicas", "adapted", "adapted without labels"))
    assert not torch.equal(plain, adapted) and not torch.equal(adapted, free)
    folders = list((setup_with_model.state / "adaptations").iterdir())
    assert len(folders) == 2


def test_the_third_that_is_hardest_early_is_expanded_or_repeated(setup_with_model):
    setup = replace(setup_with_model, task=replace(setup_with_model.task, steps=32))
    settings = Settings(steps=3, strength=0.5, replay=0.0, noise_scale=0.0)
    expanded, repeated = (
        pool_of(setup, Run(Arm(kind, kind), PoolSpec(kind, 2, made), 6, 0))
        for kind, made in (("hard", settings), ("hard copies", None)))
    hard = hard_third(setup, 6, 0, (0.5, 0.125))
    shots = images_of(setup, Run(REAL, PoolSpec("none"), 6, 0)).shots
    assert len(hard) == len(shots) // 3 == 6
    assert len(expanded.pixels) == len(repeated.pixels) == 2 * len(shots)
    assert torch.equal(repeated.pixels[::6], hard.pixels)
    assert torch.equal(expanded.seed_labels, repeated.seed_labels)
    assert not torch.equal(expanded.pixels, repeated.pixels)
