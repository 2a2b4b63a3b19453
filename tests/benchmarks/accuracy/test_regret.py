"""Regret: chosen on a draw's labeled images, measured on the test set."""

import json
from dataclasses import replace

import pytest

from benchmarks.accuracy import regret
from benchmarks.accuracy.regret import measure, report


def test_a_draw_is_chosen_tested_and_kept(setup_with_model, tmp_path, monkeypatch):
    call = regret.evaluate
    monkeypatch.setattr(regret, "evaluate", lambda *given, **more: call(
        *given, draws=3, train_steps=8, train_batch_size=6, calibrate=False, shots=2,
        expansion_ratios=(1, 10), **more))
    monkeypatch.setattr(regret, "make_makers", lambda *given: make(*given[:3], False))
    from dreamda_aug.evaluation.protocol import make_makers as make

    setup = replace(setup_with_model, task=replace(setup_with_model.task, steps=8))
    with pytest.warns(match="not calibrated"):
        measure(setup, tmp_path, 4, 0)
    path = tmp_path / "regret" / "tiny-4-0.json"
    found = json.loads(path.read_text())
    assert found["recommended"] in found["test"] and "RandAugment" in found["test"]
    monkeypatch.setattr(regret, "evaluate", None)  # would fail if it were called
    measure(setup, tmp_path, 4, 0)
    assert "| tiny, 4 per class | 1 | " in report([found])
