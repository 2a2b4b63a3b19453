"""Single runs: cached by everything that they depend on."""

from dataclasses import replace
from pathlib import Path

from benchmarks.accuracy.arms import Arm
from benchmarks.accuracy.pools import PoolSpec
from benchmarks.accuracy.runs import (
    Run,
    Setup,
    result,
    result_path,
)
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
