"""The accuracy study's tables: paired gains, and our arms against the best classical one."""

from dataclasses import replace

import pytest

from benchmarks.accuracy.arms import arms_of
from benchmarks.accuracy.report import comparisons, sentences, summary, table


def test_gains_are_paired_by_rng_seed():
    runs = [{"arm": arm, "shots": 5, "rng_seed": rng_seed, "test": value + gain, "accepted": None,
             "labels_right": None, "training_seconds": 2.0, "generation_seconds": 0.0}
            for arm, gain in (("base", 0.0), ("better", 0.1), ("best", 0.2))
            for rng_seed, value in enumerate((0.3, 0.5, 0.7))]  # fmt: skip
    row = summary(runs, "better", 5, "base")
    assert row["gain"] == pytest.approx((0.1, 0.0), abs=1e-9)
    assert row["half"] > 0.4
    assert "| better | 60.0 ± 49.7 | +10.0 ± 0.0 |" in table(runs, ["base", "better"], [5], "base")


def test_our_best_arm_is_compared_with_the_best_of_the_others(tiny):
    values = {"real only": (0.3, 0.5), "RandAugment": (0.4, 0.6), "MixUp": (0.5, 0.3),
              "samples from noise": (0.4, 0.5), "img2img, AMST": (0.9, 0.9),
              "DreamDA, tuned, AMST": (0.5, 0.6), "DreamDA, tuned": (0.2, 0.2),
              "DreamDA, tuned, true labels": (0.9, 0.9)}  # fmt: skip
    runs = [{"arm": arm, "shots": 5, "rng_seed": rng_seed, "test": value, "accepted": None,
             "labels_right": None, "training_seconds": 2.0, "generation_seconds": 0.0}
            for arm, pair in values.items() for rng_seed, value in enumerate(pair)]  # fmt: skip
    arms = arms_of(replace(tiny, judge="trained"))
    classical, diffusion = comparisons(runs, arms, [5])
    assert classical["arm"] == diffusion["arm"] == "DreamDA, tuned, AMST"
    assert classical["other"] == "RandAugment"
    assert diffusion["other"] == "samples from noise"
    assert classical["margin"][0] == pytest.approx(0.05)
    assert "minus RandAugment, the best classical arm: +5.0 ± 63.5" in sentences(classical)[0]
