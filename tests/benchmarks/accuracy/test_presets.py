"""The table that presets are chosen from, on a tiny task."""

import json
from dataclasses import replace

import pytest

from benchmarks.accuracy import presets
from dreamda_aug import Settings


def test_cost_and_figures_of_each_setting_are_written(setup_with_model, tmp_path, monkeypatch):
    few = Settings(steps=4, replay=0.0, noise_scale=0.0, strength=0.5)
    monkeypatch.setattr(presets, "SEEDS", 6)
    monkeypatch.setattr(presets, "CANDIDATES", {
        "few": few, "many": replace(few, steps=8), "replayed": replace(few, replay=1.0)})
    setup = replace(setup_with_model, task=replace(setup_with_model.task, judge="trained"))
    presets.presets(setup, tmp_path / "out", None, 1)
    found = {row["name"]: row
             for row in json.loads((tmp_path / "out" / "presets.json").read_text())["settings"]}
    # two of four steps, without guidance; ten samples share the inversion, and half of the first
    assert found["few"]["rows"] == 2 and found["many"]["rows"] == 4
    assert found["replayed"]["rows"] == pytest.approx(1.8)
    assert found["replayed"]["distance"] < 1e-2 < found["few"]["distance"]
    assert "| few | 2.0 |" in (tmp_path / "out" / "presets.md").read_text()
    assert (tmp_path / "out" / "presets.png").exists()
