"""Automatic calibration: once for a dataset, and the same for every process."""

import copy
import logging
import threading
import warnings

import pytest
import torch
from pipelines import pixel_pipeline
from sklearn.datasets import load_digits
from torchvision.transforms.v2 import functional as F

from dreamda_aug import Synthesizer, load_model
from dreamda_aug.bundled import FashionMNISTSample
from dreamda_aug.calibration import automatic
from dreamda_aug.calibration.automatic import calibrated, draw_sample, warn_if_foreign
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.models.unet import UNetModel

pytestmark = [pytest.mark.filterwarnings("ignore:no setting kept"),
              pytest.mark.usefixtures("few_choices")]


def noise(count=12, classes=2, labeled=True):
    """Dark and bright noise, by class."""
    labels = [i % classes for i in range(count)]
    images = [0.5 * label + 0.5 * torch.rand(
        1, 16, 16, generator=torch.Generator().manual_seed(i)) for i, label in enumerate(labels)]
    return open_seed_images(images, labels=labels if labeled else None)


@pytest.fixture
def synthesizer(tmp_path):
    return Synthesizer(UNetModel(pixel_pipeline(), "tiny"), steps=4, strength=None,
                       cache=tmp_path / "cache")


def run(synthesizer, images=None, indices=None):
    images = images or noise()
    return calibrated(synthesizer, images, indices or range(len(images)), lambda _: None)


def test_price_and_choice_are_said_and_the_dials_are_numbers(synthesizer, caplog):
    with caplog.at_level(logging.WARNING):
        ready, found = run(synthesizer)
    price, choice = (record.getMessage() for record in caplog.records)
    assert "U-Net rows, " in price and "--no-calibrate" in price
    assert choice.startswith("calibrated: strength=") and "agreement >= 0.9" in choice
    assert "out of fold" in choice
    settings = ready.requested_settings
    assert (settings.strength, settings.noise_scale, settings.replay) == (
        found.strength, found.noise_scale, found.replay)
    assert synthesizer.requested_settings.strength is None
    assert ready.model is synthesizer.model


def test_the_same_dataset_is_measured_once_and_another_one_anew(synthesizer, measured):
    _, first = run(synthesizer)
    other = Synthesizer(synthesizer.model, steps=4, strength=None, cache=synthesizer.cache)
    _, again = run(other)
    assert len(measured) == 1 and again == first and again.metadata() == first.metadata()
    _, different = run(synthesizer, noise(14))
    assert len(measured) == 2 and different.metadata()["digest"] != first.metadata()["digest"]


def test_processes_that_start_together_measure_once(synthesizer, measured):
    others = [Synthesizer(UNetModel(pixel_pipeline(), "tiny"), steps=4, strength=None,
                          cache=synthesizer.cache) for _ in range(2)]
    found = []
    threads = [threading.Thread(target=lambda s=s: found.append(run(s)[1])) for s in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(measured) == 1 and found[0] == found[1]


def test_numbers_in_the_settings_stay_and_are_not_measured(tmp_path, measured):
    numbers = Synthesizer(UNetModel(pixel_pipeline()), "paper", cache=tmp_path)
    assert run(numbers) == (numbers, None) and not measured
    # one image is nothing to measure on
    opened = Synthesizer(UNetModel(pixel_pipeline()), steps=4, cache=None)
    assert run(opened, noise(1)) == (opened, None) and not measured
    part = Synthesizer(UNetModel(pixel_pipeline()), steps=4, replay=0.7, cache=None)
    ready, found = run(part)
    assert ready.settings.replay == found.replay == 0.7 and len(measured) == 1


@pytest.mark.parametrize("images", [noise(classes=1), noise(classes=1, labeled=False)])
def test_without_classes_images_go_part_of_the_way_to_their_neighbours(synthesizer, images):
    _, found = run(synthesizer, images)
    # uniform noise of half the range: the distance of two images is 0.5 / sqrt(6)
    limit = float(found.target.removeprefix("distance <= "))
    assert limit == pytest.approx(0.5 * 0.5 / 6**0.5, rel=0.1) and not found.judge
    assert not found.met or found.chosen.distance <= limit


@pytest.mark.parametrize("kind", ["null class", "text"])
def test_images_without_labels_are_measured_without_conditions(
    kind, tmp_path, sd_pipeline, measured
):
    model = (UNetModel(pixel_pipeline(num_classes=3), null_class=2) if kind == "null class"
             else load_model(copy.deepcopy(sd_pipeline)))
    images, synthesizer = noise(6, labeled=False), Synthesizer(
        model, steps=3, strength=None, cache=tmp_path)
    ready, found = calibrated(synthesizer, images, range(6))
    assert ready.settings.strength == found.strength and len(measured) == 1
    assert calibrated(synthesizer, images, range(6), lambda _: None)[1] == found
    assert len(measured) == 1


def test_a_cache_that_cannot_be_written_costs_a_warning(synthesizer):
    (synthesizer.cache.root / "calibration").write_text("in the way")
    with pytest.warns(UserWarning, match="could not be saved"):
        ready, found = run(synthesizer)
    assert ready.settings.strength == found.strength


def test_the_bundled_model_warns_of_images_unlike_its_own(bundled, tmp_path, measured):
    clothes = FashionMNISTSample("test").data[::12, None].float()[:16] / 255
    digits = F.resize(torch.tensor(load_digits().images[:16, None] / 16, dtype=torch.float32),
                      [28, 28], antialias=True)
    with pytest.warns(UserWarning, match="unlike what the bundled model was trained on.*take a"):
        assert warn_if_foreign(bundled, digits)
    numbers = Synthesizer(bundled, "paper", cache=tmp_path)
    with pytest.warns(UserWarning, match="unlike what the bundled model was trained on"):
        assert run(numbers) == (numbers, None)  # though nothing is measured
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not warn_if_foreign(bundled, clothes)
        assert not warn_if_foreign(bundled, digits[:7])  # too few to tell
        _, found = run(Synthesizer(bundled, cache=tmp_path),
                       open_seed_images("bundled", split="test"), range(0, 300, 20))
    assert not measured and found.sample == "" and found.strength == 0.85


class Pictures(list):
    """Numbered images; some cannot be read, some are equal."""

    def __init__(self, count, broken=(), equal=()):
        self.opened = []
        for index in range(count):
            generator = torch.Generator().manual_seed(0 if index in equal else index + 1)
            self.append("broken" if index in broken else torch.randint(
                256, (1, 20, 16), generator=generator, dtype=torch.uint8))

    def __getitem__(self, index):
        self.opened.append(index)
        return super().__getitem__(index)


def draw(pictures, labels, indices=None):
    seeds = open_seed_images(pictures, labels=labels)
    pictures.opened.clear()
    return draw_sample(seeds, range(len(labels)) if indices is None else indices,
                       UNetModel(pixel_pipeline()), lambda index: labels[index])


def test_a_sample_is_the_same_every_time_and_even_over_classes():
    labels = [0] * 50 + [1] * 10 + [2] * 3
    sample, again = (draw(Pictures(63), labels) for _ in range(2))
    assert sample.digest == again.digest and torch.equal(sample.images, again.images)
    assert sample.images.shape[1:] == (1, 16, 16) and len(sample.images) == 63
    counts = torch.tensor(sample.conditions[:12]).bincount().tolist()
    assert sum(counts) == 12 and max(counts) - counts[2] <= 2
    # numbered anew, each class by one number
    assert len(set(zip(sample.conditions, sample.labels.tolist()))) == 3
    assert draw(Pictures(63), labels, range(50, 60)).digest != sample.digest


def test_unreadable_images_and_second_copies_are_passed_over():
    sample = draw(Pictures(12, broken=(1, 2), equal=(3, 4, 5)), [0, 1] * 6)
    assert len(sample.images) == 12 - 2 - 2
    assert draw(Pictures(2, broken=(1,)), [0, 1]) is None
    pictures = Pictures(1000)  # and no more is read than is used
    sample = draw(pictures, [i % 20 for i in range(1000)])
    assert len(pictures.opened) == len(sample.images) == automatic.JUDGED
    assert len(set(sample.conditions)) == automatic.MAX_CLASSES
