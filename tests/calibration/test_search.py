"""The search for the furthest dials: what it measures, and what it finds."""

from dataclasses import replace

import pytest
import torch
from pipelines import pixel_pipeline

from dreamda_aug import Settings
from dreamda_aug.calibration.judge import GivenJudge
from dreamda_aug.calibration.search import Dials, Measurement, Target, coarse, grid, search
from dreamda_aug.generation.dials import CalibrationPoint
from dreamda_aug.generation.tensors import TensorSynthesizer
from dreamda_aug.models import load_model
from dreamda_aug.models.unet import PixelModel

SETTINGS = Settings(steps=20, strength=None, replay=None, noise_scale=None)
CHOICES = grid((0.3, 0.5, 0.7, 0.9), (1.0, 0.9, 0.5, 0.0), (0.5, 1.0, 2.0))
TARGET = Target(min_agreement=0.9)


class Simulated:
    """Agreement falls and distance rises with every dial; full looks are a little stricter."""

    def __init__(self, stricter=0.0):
        self.stricter, self.looks = stricter, []

    def rows(self, settings, images=None):
        return settings.steps * (images or 24)

    def point(self, settings, images=None):
        self.looks.append((settings, images))
        far = settings.strength * (2 - settings.replay + settings.noise_scale / 4)
        agreement = max(0.0, 1.05 - far**2 / 8 - (self.stricter if images is None else 0))
        return CalibrationPoint(settings.noise_scale, settings.replay, agreement, far / 10,
                                far / 20, settings.strength, settings.steps, images)


def best(measured):
    points = [measured.point(each.of(SETTINGS)) for each in CHOICES]
    return max((p for p in points if TARGET.kept(p)), key=lambda p: p.distance)


def test_it_finds_what_the_whole_grid_would_in_few_looks():
    measured = Simulated()
    found, points = search(measured, SETTINGS, CHOICES, TARGET, 100_000, lambda *each: None)
    assert len(measured.looks) < len(CHOICES) / 2 and len(points) == len(measured.looks)
    assert TARGET.kept(found) and found.images is None
    assert found.distance == best(Simulated()).distance


def test_what_fails_at_the_settings_own_steps_gives_way_to_something_milder():
    found, points = search(Simulated(0.05), SETTINGS, CHOICES, TARGET, 100_000, lambda *e: None)
    full = [point for point in points if point.images is None]
    assert len(full) > 1 and full[-1] == found
    assert TARGET.kept(found) and not any(map(TARGET.kept, full[:-1]))
    assert found.distance >= 0.7 * best(Simulated(0.05)).distance


def test_the_rows_are_kept_to_and_one_choice_is_always_confirmed():
    for budget in (1, 2_000, 20_000):
        measured = Simulated()
        found, _ = search(measured, SETTINGS, CHOICES, TARGET, budget, lambda *each: None)
        largest = max(measured.rows(settings, images) for settings, images in measured.looks)
        spent = sum(measured.rows(settings, images) for settings, images in measured.looks)
        assert spent < budget + 2 * largest and found.images is None


def test_where_nothing_holds_the_mildest_choice_is_measured_and_taken():
    found, points = search(Simulated(2.0), SETTINGS, CHOICES, Target(min_agreement=1.1), 9_000,
                           lambda *each: None)
    assert (found.strength, found.replay, found.noise_scale) == (0.3, 1.0, 0.5)


def test_no_dial_may_lag_behind_where_one_choice_reaches_another():
    middle = Dials(0.5, 0.9, 1.0)
    assert middle.reaches(middle) and Dials(0.7, 0.5, 2.0).reaches(middle)
    for lagging in (Dials(0.3, 0.5, 2.0), Dials(0.7, 1.0, 2.0), Dials(0.7, 0.5, 0.5)):
        assert not lagging.reaches(middle)
    assert CHOICES[0] == Dials(0.3, 1.0, 0.5) and len(CHOICES) == 48


def test_a_coarse_look_begins_at_the_same_noise_level():
    model = PixelModel(pixel_pipeline())
    settings = Settings(steps=50, strength=0.5)
    few = coarse(settings)
    schedules = [model.schedule(s.steps, s.strength, s.timestep_spacing)
                 for s in (settings, few)]
    assert len(schedules[1]) == 6 and len(schedules[0]) == 25
    assert torch.equal(schedules[0].noise[0], schedules[1].noise[0])
    already = replace(settings, steps=8)
    assert coarse(already) == already


def test_rows_are_those_that_pass_the_unet():
    model = PixelModel(pixel_pipeline())
    core = TensorSynthesizer(model, Settings(steps=4, strength=0.5), batch_size=64)
    torch.manual_seed(0)
    measured = Measurement(core, torch.rand(3, 1, 16, 16), None, None,
                           GivenJudge(lambda batch: batch), 2)
    for rule, replay in (("symmetric", 1.0), ("asymmetric", 0.5), ("asymmetric", 0.0)):
        settings = Settings(steps=4, strength=0.5, update_rule=rule, replay=replay)
        before = model.hook.encoder_rows, model.hook.decoder_rows
        point = measured.point(settings)
        assert (point.steps, point.images) == (2, 3)
        encoder, decoder = (now - then for now, then in zip(
            (model.hook.encoder_rows, model.hook.decoder_rows), before))
        # replicas of an image share the encoder at their first step
        assert abs(measured.rows(settings) - (encoder + decoder) / 2) <= 3 + 2
    assert measured.seconds_per_row() > 0


def test_rows_outside_the_guidance_interval_are_counted_once(class_folder):
    model = load_model(class_folder)
    settings = Settings(steps=4, strength=1.0, replay=0.0, noise_scale=0.0, guidance_scale=2.0,
                        guidance_interval=(0.0, 0.5), update_rule="symmetric")
    measured = Measurement(TensorSynthesizer(model, settings), torch.rand(3, 1, 16, 16), None,
                           [0, 1, 0], None, 2)
    before = model.hook.decoder_rows
    measured.point(settings)
    assert measured.rows(settings) == model.hook.decoder_rows - before == 3 * 2 * (4 + 2)


@pytest.mark.parametrize("target, text", [
    (Target(min_agreement=0.9), "agreement >= 0.9"), (Target(max_distance=0.1), "distance <= 0.1"),
])
def test_a_target_says_what_it_is(target, text):
    assert str(target) == text


def test_a_share_that_is_exactly_the_target_keeps_it():
    """18 of 20 is 0.9, though not in single precision."""
    core = TensorSynthesizer(PixelModel(pixel_pipeline()), Settings(steps=2), batch_size=64)
    answers = torch.zeros(20, dtype=torch.int64)
    answers[:2] = 1
    judge = GivenJudge(lambda batch: answers if len(batch) == 20 else answers[2 : 2 + len(batch)])
    images = torch.rand(10, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    measured = Measurement(core, images, torch.zeros(10, dtype=torch.int64), None, judge, 2)
    assert TARGET.kept(measured.point(Settings(steps=2)))
