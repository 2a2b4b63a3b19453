"""The accuracy study's tables: paired gains, and our arms against the best classical one."""

import pytest

from benchmarks.accuracy.arms import ARMS
from benchmarks.accuracy.report import closed_gap, comparisons, sentences, summary, table


def test_gains_are_paired_by_rng_seed():
    runs = [{"arm": arm, "shots": 5, "rng_seed": rng_seed, "test": value + gain, "accepted": None,
             "labels_right": None, "training_seconds": 2.0, "generation_seconds": 0.0}
            for arm, gain in (("base", 0.0), ("better", 0.1), ("best", 0.2))
            for rng_seed, value in enumerate((0.3, 0.5, 0.7))]  # fmt: skip
    row = summary(runs, "better", 5, "base")
    assert row["gain"] == pytest.approx((0.1, 0.0), abs=1e-9)
    assert row["half"] > 0.4
    assert closed_gap(runs, "better", 5, "base", "best") == pytest.approx(0.5)
    assert "| better | 60.0 ± 49.7 | +10.0 ± 0.0 |" in table(runs, ["base", "better"], [5], "base")


def test_our_arms_are_compared_with_the_best_classical_one():
    values = {"real only": (0.3, 0.5), "RandAugment": (0.4, 0.6), "MixUp": (0.5, 0.3),
              "linear probe of the backbone": (0.9, 0.9), "DreamDA + AMST": (0.5, 0.5),
              "DreamDA, oracle labels": (0.7, 0.7)}  # fmt: skip
    runs = [{"arm": arm, "shots": 5, "rng_seed": rng_seed, "test": value, "accepted": None,
             "labels_right": None, "training_seconds": 2.0, "generation_seconds": 0.0}
            for arm, pair in values.items() for rng_seed, value in enumerate(pair)]  # fmt: skip
    arms = [arm for arm in ARMS if arm.name in values]
    ceilings = {"DreamDA + AMST": "DreamDA, oracle labels", "not run": ""}
    row, = comparisons(runs, arms, [5], "real only", ceilings)
    assert row["best_classical"] == "RandAugment" and row["margin"][0] == pytest.approx(0)
    assert row["gap_closed"] == pytest.approx(1 / 3)
    margin, gap = sentences(row, "real only")
    assert "minus RandAugment, the best classical arm: +0.0 ± 127.1" in margin
    assert "closes 33% of the gap between real only and DreamDA, oracle labels" in gap
    assert [arm.name for arm in ARMS if arm.is_classical] == [
        "flip + crop", "RandAugment", "TrivialAugment", "AugMix", "MixUp", "CutMix", "Cutout"]
