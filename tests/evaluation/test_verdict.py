"""Intervals, and the verdict that follows from them."""

import json

import pytest

from dreamda_aug.evaluation import Evaluation


def evaluation(gains: list[float]) -> Evaluation:
    base = [0.5 + 0.01 * number for number in range(len(gains))]
    ours = [value + gain for value, gain in zip(base, gains, strict=True)]
    return Evaluation({"real only": [0.4] * len(gains), "RandAugment": base, "DreamDA": ours},
                      {"DreamDA": 0.9}, ["real only", "RandAugment"], "DreamDA", {})


@pytest.mark.parametrize(("gains", "verdict"), [
    ([0.05, 0.06, 0.05], "worth it here"),
    ([-0.03, -0.02, -0.03], "not worth it here"),
    ([0.001, 0.0, 0.001], "not worth it here"),
    ([0.2, -0.2, 0.1], "undecided"),
    ([0.1], "undecided"),
])  # fmt: skip
def test_the_verdict_follows_the_paired_interval(gains, verdict):
    found = evaluation(gains)
    assert found.best_classical == "RandAugment" and found.verdict == verdict
    assert f"verdict: {verdict} (DreamDA minus RandAugment" in str(found)


def test_it_is_saved_as_json(tmp_path):
    evaluation([0.1]).save(tmp_path / "found.json")
    facts = json.loads((tmp_path / "found.json").read_text())
    assert facts["verdict"] == "undecided" and facts["gain"][1] is None
