"""Curves of time and memory, at sizes that say nothing."""

import json

import pytest

from benchmarks.scale import growth
from benchmarks.scale.__main__ import main
from benchmarks.scale.growth import exponent


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(growth, "SUBJECTS", {
        name: (measure, (20, 60)) for name, (measure, _) in growth.SUBJECTS.items()})


def test_every_stage_gets_a_curve_a_plot_and_a_line_in_the_page(small, tmp_path):
    page = tmp_path / "cost.md"
    page.write_text("<!-- figures: scale/growth -->\n<!-- end of figures -->\nprose\n")
    main(["growth", "--out", str(tmp_path), "--docs", str(page)])
    record = json.loads((tmp_path / "growth.json").read_text())
    stages = {(curve["subject"], curve["stage"]) for curve in record["curves"]}
    assert ("planned images", "make and write") in stages
    assert ("cache entries", "evict a tenth of it") in stages
    assert ("manifest lines", "read it") in stages and len(stages) == 10
    for curve in record["curves"]:
        assert curve["sizes"] == [20, 60] and all(each >= 0 for each in curve["seconds"])
        assert curve["exponent"] == exponent([20, 60], curve["seconds"])
        assert f"| {curve['subject']} | 20 to 60 | {curve['stage']} |" in page.read_text()
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
