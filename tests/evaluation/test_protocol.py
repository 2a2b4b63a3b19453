"""The study on a folder so small that it takes seconds."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from pipelines import pixel_pipeline
from torch import nn

from dreamda_aug import Synthesizer, evaluate
from dreamda_aug.amst import LabelPrior
from dreamda_aug.errors import StorageError
from dreamda_aug.evaluation.protocol import count_shots, draw_images
from dreamda_aug.evaluation.training import Trainer
from dreamda_aug.method.seeding import derive_seed
from dreamda_aug.method.settings import resolve_settings

OPTIONS = {"shots": 2, "draws": 3, "train_steps": 8, "train_batch_size": 6, "flip": 0.0,
           "learning_rate": 0.1, "calibrate": False}


class Marked(list):
    """Images whose upper or lower half is bright."""

    def __init__(self, count: int = 16, classes: tuple[str, str] = ("up", "left")):
        super().__init__()
        self.classes = list(classes)
        for number in range(count):
            image = torch.full((1, 16, 16), 0.2)
            image[:, 8 * (number % 2) : 8 * (number % 2) + 8] = 0.9
            self.append((image + number / 1000, number % 2))


def tiny(channels: int, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                         nn.Linear(16 * channels, num_classes))


def numbers(found):
    return [(run.arm, run.draw, run.accuracy) for run in found.runs]


@pytest.fixture
def presets():
    settings = Synthesizer(pixel_pipeline(), steps=3, strength=0.6, replay=0.5,
                           noise_scale=1.0).requested_settings
    return {"near": replace(settings, strength=0.4), "far": settings}


@pytest.fixture
def call(presets):
    def call(source=None, model=None, **changes):
        options = {"presets": presets, "expansion_ratios": (1, 2), "classifier": tiny, **OPTIONS}
        synthesizer = Synthesizer(model or pixel_pipeline(), cache=None)
        return evaluate(source or Marked(), synthesizer, **options | changes)

    return call


def test_arms_are_halved_and_the_same_call_gives_the_same_numbers(call):
    lines, model = [], pixel_pipeline()
    found = call(model=model, progress=lines.append)
    of_draw = Counter(run.draw for run in found.runs)
    assert of_draw == {0: 6, 1: 4, 2: 3}  # 2 + 4, then 1 + 2 + AMST, then 1 + 2
    assert {run.arm for run in found.runs if run.draw == 0} == {
        "real only", "RandAugment", "near x1", "near x2", "far x1", "far x2"}
    assert [run.arm for run in found.runs if run.draw == 1][-1].endswith(", AMST")
    assert found.accuracies(found.arms[0])[0] == 1  # it learned the halves
    assert len(lines) == 14 and "13 trainings of 8 steps" in lines[0]
    assert lines[1].startswith("draw 1 of 3  real only: 100.0 %")
    torch.manual_seed(5)  # nothing follows from the global generator, or changes it
    state = torch.get_rng_state()
    assert numbers(call(model=model)) == numbers(found)
    assert torch.equal(torch.get_rng_state(), state)


def test_another_rng_seed_shares_no_draw():
    labels = torch.arange(60) % 3
    draws = {tuple(draw_images(labels, 4, derive_seed(seed, "draw", draw))[0].tolist())
             for seed in range(4) for draw in range(5)}
    assert len(draws) == 20
    chosen, held_out = draw_images(labels, 4, 0)
    assert labels[chosen].bincount().tolist() == [4, 4, 4]
    assert sorted([*chosen.tolist(), *held_out.tolist()]) == list(range(60))


def test_an_interrupted_evaluation_resumes_to_the_same_numbers(call, tmp_path, monkeypatch):
    whole = call()
    out = tmp_path / "found.json"
    train, count = Trainer.supervised, []

    def breaks(self, *given, **more):
        count.append(1)
        if len(count) == 9:
            raise KeyboardInterrupt
        return train(self, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "supervised", breaks)
        with pytest.raises(KeyboardInterrupt):
            call(out=out)
    kept = len(json.loads(out.read_text())["runs"])
    assert 0 < kept < 13
    lines = []
    assert numbers(call(out=out, progress=lines.append)) == numbers(whole)
    assert len(lines) == 14 - kept
    assert call(out=out, progress=lines.append).recommended == whole.recommended
    assert len(lines) == 14 - kept  # nothing was left to do
    with pytest.raises(StorageError, match=r"found one with other \['shots'\]. Name another file"):
        call(out=out, shots=3)


def test_images_are_made_once_for_all_arms_and_those_recommended_of_all(
    call, monkeypatch, tmp_path
):
    asked = []
    make = Synthesizer.synthesize_values

    def spied(self, images, labels, replicas, epoch, names):
        asked.append((self.requested_settings.strength, epoch, len(images)))
        return make(self, images, labels, replicas, epoch, names)

    monkeypatch.setattr(Synthesizer, "synthesize_values", spied)
    found = call(apply=tmp_path / "made")
    made = len(list((tmp_path / "made").rglob("*.png")))
    assert made == 16 * found.recommended.expansion_ratio
    pools = [each for each in asked if each[2] > 2]  # others measure the price
    first = [each for each in pools if each[1] == 0]
    assert sorted(first) == [(0.4, 0, 8), (0.6, 0, 8)]  # four labeled images, ratio 2
    assert len(pools) == len({each[:2] for each in pools})


def test_a_model_that_knows_the_classes_has_samples_and_a_label_prior(
    call, class_folder, monkeypatch, presets
):
    asked = []
    estimate = LabelPrior.estimate
    monkeypatch.setattr(LabelPrior, "estimate", lambda asked_for, *rest, **more: (
        asked.append(asked_for.tolist()), estimate(asked_for, *rest, **more))[1])
    found = call(model=class_folder, presets=None, expansion_ratios=(1,))
    assert [arm.name for arm in found.arms[2:]] == ["samples x1", "recommended x1", "fast x1"]
    assert found.plus and asked[0] == [0, 0, 1, 1]
    with pytest.warns(match=r"does not have the classes \['elsewhere'\]"):
        other = call(Marked(classes=("up", "elsewhere")), model=class_folder, presets=None,
                     expansion_ratios=(1,))
    assert [arm.preset for arm in other.arms[2:]] == ["recommended", "fast"] and not other.plus


def test_settings_of_no_preset_are_compared_too_and_presets_may_be_changed(call):
    own = Synthesizer(pixel_pipeline(), cache=None, steps=3, strength=0.6, replay=0.5,
                      noise_scale=1.0)
    options = OPTIONS | {"expansion_ratios": (1,), "classifier": tiny}
    found = evaluate(Marked(), own, **options)
    assert [arm.name for arm in found.arms[2:]] == ["recommended x1", "fast x1",
                                                    "given settings x1"]
    changed = call(presets=None, settings={"steps": 2}, expansion_ratios=(1,))
    assert [arm.name for arm in changed.arms[2:]] == ["recommended x1", "fast x1"]
    assert all("steps=2" in dials for dials in changed.settings["dials"].values())


def test_dials_are_measured_once_on_the_labeled_images_of_the_first_draw(
    call, measured, few_choices
):
    call(shots=4, calibrate=True, expansion_ratios=(1,),
         presets={"open": resolve_settings("fast", steps=3)})
    assert len(measured) == 1 and len(measured[0][1].images) == 8


def test_shots_fit_the_smallest_class():
    labels = torch.tensor([0] * 9 + [1] * 6)
    assert count_shots(labels, ["a", "b"], None) == 4
    assert count_shots(torch.arange(4000) % 4, list("abcd"), None) == 25
    with pytest.raises(ValueError, match=r"at least 7 images of each class, 6 to train on and one "
                                         r"to test on; class 'b' has 6. Use fewer shots"):
        count_shots(labels, ["a", "b"], 6)
    with pytest.raises(ValueError, match=r"at least 3 images .* class 'c' has 0. Add images"):
        count_shots(labels, ["a", "b", "c"], None)


def test_what_cannot_be_studied_is_refused(call):
    for change, message in (
            ({"train_steps": 12}, "train_steps must be a multiple of 8, got 12"),
            ({"expansion_ratios": (0, 5)}, r"expansion_ratios must be integers >= 1, got \(0, 5")):
        with pytest.raises(ValueError, match=message):
            call(**change)
