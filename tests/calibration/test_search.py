"""`calibrate`: what it measures, what it chooses, and where its result is found again."""

import pytest
import torch
from pipelines import pixel_pipeline, sampler

from dreamda_aug import DreamDAugment, Settings, Synthesizer, calibrate, load_model
from dreamda_aug.calibration.judge import given_judge
from dreamda_aug.calibration.search import Measurement, Target, choose, dial_choices
from dreamda_aug.generation.dials import CalibrationPoint
from dreamda_aug.models.unet import UNetModel

pytestmark = pytest.mark.filterwarnings("ignore:tiny was not calibrated")
SETTINGS = Settings(steps=20, strength=None, replay=None, noise_scale=None)
CHOICES = dial_choices(SETTINGS, (0.3, 0.5, 0.7, 0.9), (1.0, 0.9, 0.5, 0.0), (0.5, 1.0, 2.0))
TARGET = Target(min_agreement=0.9)
OPEN = Settings(steps=4, strength=0.5, replay=None, noise_scale=None, guidance_scale=2.0,
                timestep_spacing="scheduler")
LABELS = torch.tensor([0, 0, 0, 1, 1, 1])


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
    measured = Measurement(sampler(UNetModel(pixel_pipeline()), settings), images, None, judge, 2)
    point, _ = measured.look(settings)
    assert TARGET.kept(point) and (point.judged, measured.right) == (10, 10)
    low, high = point.interval
    assert low < point.agreement == 0.9 < high


@pytest.fixture
def synthesizer(tmp_path):
    return Synthesizer(UNetModel(pixel_pipeline(), "tiny"), OPEN, cache=tmp_path)


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.rand(6, 1, 16, 16)


def run(synthesizer, images, **settings):
    return calibrate(images, LABELS, synthesizer=synthesizer, noise_scales=(0.0, 1.0, 4.0),
                     replays=(1.0, 0.8), expansion_ratio=2, **settings)


def test_the_point_that_moves_images_most_and_keeps_the_target_is_found_again(synthesizer, images):
    result = run(synthesizer, images, max_distance=0.1)
    good = [p for p in result.points if p.distance <= 0.1]
    assert result.met and result.chosen == max(good, key=lambda p: p.distance)
    assert 0 < len(good) < 6  # otherwise the target decided nothing
    again = Synthesizer(synthesizer.model, OPEN, cache=synthesizer.cache)
    assert (again.settings.noise_scale, again.settings.replay) == (
        result.noise_scale, result.replay)
    with pytest.warns(UserWarning, match="not calibrated"):  # other settings, other calibration
        _ = Synthesizer(synthesizer.model, steps=5, cache=synthesizer.cache).settings
    assert run(DreamDAugment(synthesizer), images, max_distance=0.1) == result


def test_a_given_classifier_is_the_judge(synthesizer, images):
    """A judge that calls everything class 0 is right on class 0 alone, and always agrees there."""
    for classifier in (lambda batch: torch.zeros(len(batch)).long(),
                       lambda batch: torch.tensor([[1.0, 0.0]]).expand(len(batch), 2)):
        result = run(synthesizer, images, classifier=classifier, max_rows=1)
        assert result.judge == "the given classifier" and result.points
        assert all(p.agreement == 1 and p.judged == 3 for p in result.points)
    with pytest.raises(ValueError, match="at least two, got 1"):  # it would always agree, too
        given_judge(lambda batch: torch.zeros(len(batch), 1), LABELS).keeps(images, LABELS)


@pytest.mark.parametrize("wrong, message", [
    (dict(labels=None), "labels must be given for the agreement target"),
    (dict(labels=torch.zeros(6, dtype=torch.int64)), "labels must be of two classes or more"),
    (dict(block_indices=[1]), r"block_indices are for transformers.*U-Net, got \[1\]"),
])
def test_wrong_arguments_are_refused(synthesizer, images, wrong, message):
    with pytest.raises(ValueError, match=message):
        calibrate(images, **{"labels": LABELS, "synthesizer": synthesizer, **wrong})


@pytest.fixture
def transformer():
    pytest.importorskip("transformers")
    from benchmarks.families import pipelines

    return load_model(pipelines.dit())


def measure(model, cache, **options):
    torch.manual_seed(0)
    given = {"noise_scales": (1.0, 8.0), "replays": (1.0,), "max_distance": 1.0,
             "conditions": [0] * 6, **options}
    return calibrate(torch.rand(6, 3, 16, 16), LABELS, expansion_ratio=2,
                     synthesizer=Synthesizer(model, steps=4, cache=cache), **given)


def hooks(model):
    return [len(each._forward_hooks) for each in model.denoiser.modules()]


def test_blocks_are_measured_alike_and_the_furthest_that_keeps_the_target_is_chosen(
    transformer, tmp_path
):
    def bright(batch):
        return (batch.mean((1, 2, 3)) > 0.5).long()

    single = {block: measure(transformer.with_block(block), None, classifier=bright)
              for block in (0, 1, 3)}
    assert len({each.chosen.distance for each in single.values()}) == 3
    seen = []
    result = measure(transformer, tmp_path, classifier=bright, block_indices=[3, 0, 1, 0],
                     progress=seen.append)
    assert result.points == seen == [p for block in (3, 0, 1) for p in single[block].points]
    best = max(single, key=lambda block: single[block].chosen.distance)
    assert result.block_index == best and result.chosen == single[best].chosen and result.met


def test_each_block_has_its_own_calibration_and_no_other_block_takes_it(transformer, tmp_path):
    before = hooks(transformer)
    result = measure(transformer, tmp_path, block_indices=[0, 1])
    # the synthesizer's model is as it was
    assert hooks(transformer) == before and transformer.block_index == 2

    def found(**options):
        return Synthesizer(transformer.pipeline, steps=4, cache=tmp_path, **options).settings

    assert found(block_index=result.block_index).noise_scale == result.noise_scale
    assert found(block_index=1 - result.block_index).noise_scale in (1.0, 8.0)
    with pytest.warns(UserWarning, match="not calibrated for these settings yet"):
        found()


def test_a_block_that_is_not_there_is_refused_before_anything_is_measured(transformer):
    before = hooks(transformer), transformer.hook.encoder_rows
    with pytest.raises(ValueError, match="block_index must be an integer from 0 to 3.*got 4"):
        measure(transformer, None, block_indices=[0, 4])
    assert before == (hooks(transformer), transformer.hook.encoder_rows)
