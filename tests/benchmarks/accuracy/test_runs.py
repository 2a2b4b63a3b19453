"""Single runs: cached by everything that they depend on."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.accuracy.arms import Arm
from benchmarks.accuracy.pools import PoolSpec, Stopped
from benchmarks.accuracy.runs import Run, Setup, result, result_path
from benchmarks.accuracy.training import Training

REAL = Arm("real only", view="none")


def test_a_run_is_trained_once_and_again_only_when_something_changed(tmp_path, monkeypatch, tiny):
    setup = Setup(tiny, Path(), tmp_path)
    run = Run(Arm("duplicate-real", "copies", view="none"), PoolSpec("copies", 3), 2, 0)
    first = result(setup, run)
    assert set(first) >= {"arm", "shots", "rng_seed", "validation", "test", "commit", "machine"}
    monkeypatch.setattr(Training, "run", None)  # would fail if it were called
    assert result(setup, run) == first
    others = [replace(run, rng_seed=1), replace(run, spec=PoolSpec("copies", 4)),
              replace(run, arm=replace(run.arm, weak=(0.0, 0.0)))]  # fmt: skip
    setups = [setup, setup, setup, replace(setup, task=replace(tiny, learning_rate=1e-2))]
    paths = [result_path(s, r) for s, r in zip(setups, [*others, run], strict=True)]
    assert len({*paths, result_path(setup, run)}) == 5


def test_a_run_beyond_the_deadline_is_not_begun(tmp_path, tiny):
    with pytest.raises(Stopped):
        result(Setup(tiny, Path(), tmp_path, deadline=0), Run(REAL, PoolSpec("none"), 2, 0))


def test_tuning_looks_at_validation_alone(tmp_path, tiny):
    run = Run(REAL, PoolSpec("none"), 2, 100, tuning=True)
    found = result(Setup(tiny, Path(), tmp_path), run)
    assert found["test"] is None and 0 <= found["validation"] <= 1
