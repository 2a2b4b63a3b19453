"""Rankings, recommendations and verdicts, on made-up accuracies."""

import os

import pytest

from dreamda_aug.errors import StorageError
from dreamda_aug.evaluation import Evaluation
from dreamda_aug.evaluation.result import Arm, Run

NAMES = ("real only", "RandAugment", "samples x5", "samples x10", "fast x5", "fast x10")
ARMS = [Arm(name, name.partition(" x")[0] if "x" in name[-3:] else "",
            int(name.partition(" x")[2] or 0) if "x" in name[-3:] else 0,
            price=float(name.partition(" x")[2] or 0) if "x" in name[-3:] else 0.0)
        for name in NAMES]  # fmt: skip


def evaluation(draws: int = 6, **gains: float | list[float]) -> Evaluation:
    """Everything that halving runs; an arm gains a number, or one in each draw, over RandAugment.
    """
    found = Evaluation({"draws": draws}, ARMS, plus=True,
                       command="dreamda expand photos --preset {preset} -k {expansion_ratio}")
    for draw in range(draws):
        for arm in found.contenders(found.rung(draw)):
            gain = gains.get(arm.name, -0.2)
            gain = gain[draw] if isinstance(gain, list) else gain
            found.runs.append(Run(arm.name, draw, 0.5 + 0.03 * draw + gain, 2.0))
    return found


def test_poor_arms_stop_early_and_the_best_images_meet_amst():
    found = evaluation(**{"RandAugment": 0.0, "real only": -0.1, "samples x10": 0.1,
                          "fast x10": 0.05, "samples x10, AMST+": 0.08})
    assert [arm.name for arm in found.contenders(1)] == [
        "RandAugment", "samples x10", "fast x10", "samples x10, AMST", "samples x10, AMST+"]
    assert [arm.name for arm in found.contenders(2)] == [
        "RandAugment", "samples x10", "samples x10, AMST+"]
    assert [arm.name for arm in found.ranking] == [
        "samples x10", "samples x10, AMST+", "RandAugment", "fast x10", "samples x10, AMST",
        "real only", "samples x5", "fast x5"]
    assert found.recommended.name == "samples x10" and found.verdict == "helps"
    assert found.gain(found.recommended) == pytest.approx((0.1, 0.0))
    text = str(found)
    assert "samples x10             6   67.5 ± 5.9   +10.0 ± 0.0" in text
    assert "recommended: samples x10 (the best)" in text
    assert "to do: dreamda expand photos --preset samples -k 10" in text


def test_the_cheapest_arm_within_noise_of_the_best_is_recommended():
    noise = [0.0, 0.02, 0.0, -0.02, 0.02, -0.01]
    close = evaluation(**{"RandAugment": 0.0, "samples x5": 0.1,
                          "samples x10": [0.102 + each for each in noise]})
    assert close.ranking[0].name == "samples x10" and close.recommended.name == "samples x5"
    assert "(within noise of the best, samples x10, and cheaper)" in str(close)
    # within noise, but more than a point behind
    far = evaluation(**{"RandAugment": 0.0, "samples x5": 0.1,
                        "samples x10": [0.115 + 10 * each for each in noise]})
    assert far.ranking[0].name == far.recommended.name == "samples x10"
    poor = evaluation(**{"RandAugment": 0.0, "samples x5": -0.05, "samples x10": -0.04})
    assert poor.recommended.name == "RandAugment" and poor.verdict == "does not help"
    assert "to do: train with RandAugment; make no images" in str(poor)
    real = evaluation(**{"real only": 0.1, "RandAugment": 0.0, "samples x5": 0.12})
    assert real.best_classical.name == "real only" == real.contenders(2)[0].name


@pytest.mark.parametrize(("gains", "verdict"), [
    ([0.05, 0.06, 0.05, 0.06, 0.05, 0.06], "helps"),
    ([0.0051, 0.0052, 0.0051, 0.0052, 0.0051, 0.0052], "helps"),  # a small gain, but a sure one
    ([0.001, 0.0, 0.001, 0.0, 0.001, -0.001], "does not help"),
    ([0.2, -0.1, 0.1, 0.2, -0.2, 0.1], "undecided"),
])  # fmt: skip
def test_the_verdict_follows_the_paired_interval_by_one_rule(gains, verdict):
    found = evaluation(**{"RandAugment": 0.0, "samples x5": gains})
    assert found.verdict == verdict
    assert f"generated images: {verdict} (samples x5 minus RandAugment" in str(found)


def test_it_is_saved_and_loaded(tmp_path):
    found = evaluation(**{"RandAugment": 0.0, "samples x5": 0.1})
    found.save(tmp_path / "found.json")
    assert Evaluation.load(tmp_path / "found.json") == found
    assert '"recommended": "samples x5"' in (tmp_path / "found.json").read_text()
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(StorageError, match=r"other.json: expected an evaluation, found other JSON"):
        Evaluation.load(tmp_path / "other.json")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StorageError, match="expected a regular file, found a FIFO"):
        Evaluation.load(tmp_path / "fifo")
