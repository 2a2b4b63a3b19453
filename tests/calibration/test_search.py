"""The search for the furthest dials: what it measures, and what it finds."""


import pytest
import torch
from pipelines import pixel_pipeline, sampler

from dreamda_aug import Settings
from dreamda_aug.calibration.judge import given_judge
from dreamda_aug.calibration.search import Measurement, Target, choose, dial_choices
from dreamda_aug.generation.dials import CalibrationPoint
from dreamda_aug.models.unet import PixelModel

SETTINGS = Settings(steps=20, strength=None, replay=None, noise_scale=None)
CHOICES = dial_choices(SETTINGS, (0.3, 0.5, 0.7, 0.9), (1.0, 0.9, 0.5, 0.0), (0.5, 1.0, 2.0))
TARGET = Target(min_agreement=0.9)


def dials(settings):
    return settings.strength, settings.replay, settings.noise_scale


class Simulated:
    """Agreement falls and distance rises with every dial; full looks are a little stricter."""

    judge = None

    def __init__(self, stricter=0.0):
        self.stricter, self.looks = stricter, []

    def rows(self, settings, images=None):
        return settings.steps * (images or 24)

    def look(self, settings, images=None):
        self.looks.append((settings, images))
        far = settings.strength * (2 - settings.replay + settings.noise_scale / 4)
        agreement = max(0.0, 1.05 - far**2 / 8 - (self.stricter if images is None else 0))
        return CalibrationPoint(settings.strength, settings.noise_scale, settings.replay, agreement,
                                far / 10, far / 20, settings.steps, images or 24), None


def find(measured, budget=100_000, target=TARGET):
    found = choose(measured, CHOICES, target, budget)
    full = [point for point in found.points if point.images == 24]
    assert len(found.points) == len(measured.looks)
    return found, full


def best(measured):
    points = [measured.look(each)[0] for each in CHOICES]
    return max((p for p in points if TARGET.kept(p)), key=lambda p: p.distance)


def test_it_finds_what_the_whole_grid_would_in_few_looks():
    found, _ = find(Simulated())
    assert found.met and found.points[-1] == found.chosen
    assert len(found.points) < len(CHOICES) / 2
    assert found.chosen.distance == best(Simulated()).distance
    whole, full = find(Simulated(), None)
    assert len(full) == len(CHOICES) and whole.chosen.distance == found.chosen.distance


def test_what_fails_at_the_settings_own_steps_gives_way_to_something_milder():
    found, full = find(Simulated(0.05))
    assert len(full) > 1 and found.met and not any(map(TARGET.kept, full[:-1]))
    assert found.chosen.distance >= 0.7 * best(Simulated(0.05)).distance


@pytest.mark.parametrize("budget", [1, 2_000, 20_000])
def test_the_rows_are_kept_to_and_one_choice_is_always_confirmed(budget):
    measured = Simulated()
    _, full = find(measured, budget)
    rows = [measured.rows(settings, images) for settings, images in measured.looks]
    assert sum(rows) < budget + 2 * max(rows) and full


def test_where_nothing_holds_the_mildest_choice_is_measured_and_taken():
    with pytest.warns(UserWarning, match="no setting kept agreement >= 1.1; took the closest"):
        found, _ = find(Simulated(2.0), 9_000, Target(min_agreement=1.1))
    assert dials(found) == (0.3, 1.0, 0.5) and not found.met


def test_a_grid_begins_with_the_mildest_choice_and_keeps_dials_that_are_numbers():
    assert dials(CHOICES[0]) == (0.3, 1.0, 0.5) and len(CHOICES) == 48
    settings = Settings(strength=None, replay=0.7)
    assert list(map(dials, dial_choices(settings, (0.5, 0.3, 0.5), (1, 0.9), (1, 2)))) == [
        (0.3, 0.7, 1.0), (0.5, 0.7, 1.0)]


def test_a_share_that_is_exactly_the_target_keeps_it():
    """18 of 20 is 0.9, though not in single precision."""
    settings = Settings(steps=2).with_dials()
    answers = torch.zeros(20, dtype=torch.int64)
    answers[:2] = 1
    judge = given_judge(lambda batch: answers if len(batch) == 20 else answers[2 : 2 + len(batch)],
                        torch.zeros(10, dtype=torch.int64))
    images = torch.rand(10, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    measured = Measurement(sampler(PixelModel(pixel_pipeline()), settings), images, None, judge, 2)
    point, _ = measured.look(settings)
    assert TARGET.kept(point) and (point.judged, measured.right) == (10, 10)
    low, high = point.interval
    assert low < point.agreement == 0.9 < high
