"""The sample that dials are calibrated on."""

import pytest
import torch
from pipelines import pixel_pipeline

from dreamda_aug.calibration import samples
from dreamda_aug.calibration.samples import draw_sample
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.models.unet import PixelModel


class Noise(list):
    """Numbered images; some cannot be read, some are equal."""

    opened = ()

    def __getitem__(self, index):
        self.opened = (*self.opened, index)
        return super().__getitem__(index)


def noise(labels, broken=(), equal=()):
    images = Noise()
    for index in range(len(labels)):
        generator = torch.Generator().manual_seed(0 if index in equal else index + 1)
        pixels = torch.randint(256, (1, 20, 16), generator=generator, dtype=torch.uint8)
        images.append("broken" if index in broken else pixels)
    return images, labels


@pytest.fixture(scope="module")
def model():
    return PixelModel(pixel_pipeline())


def draw(source, model, indices=None):
    images, labels = source
    indices = range(len(images)) if indices is None else indices
    seeds = open_seed_images(images, labels=labels)
    images.opened = ()
    return draw_sample(seeds, indices, model, lambda index: labels[index])


def test_it_is_the_same_every_time_and_even_over_classes(model):
    labels = [0] * 50 + [1] * 10 + [2] * 3
    sample = draw(noise(labels), model)
    again = draw(noise(labels), model)
    assert sample.digest == again.digest and torch.equal(sample.images, again.images)
    assert sample.images.shape[1:] == (1, 16, 16) and sample.measured == 24
    counts = torch.tensor(sample.conditions[:12]).bincount().tolist()
    assert sum(counts) == 12 and max(counts) - counts[2] <= 2
    # numbered anew, each class by one number
    assert len(set(zip(sample.conditions, sample.labels.tolist()))) == 3


def test_it_changes_with_what_it_is_drawn_from(model):
    labels = [0, 1] * 10
    one, other = draw(noise(labels), model), draw(noise(labels), model, range(10))
    assert one.digest != other.digest and len(other.images) == 10


def test_unreadable_images_and_second_copies_are_passed_over(model):
    sample = draw(noise([0, 1] * 6, broken=(1, 2), equal=(3, 4, 5)), model)
    assert len(sample.images) == 12 - 2 - 2
    assert draw(noise([0, 1], broken=(1,)), model) is None


def test_no_more_is_read_than_is_used(model, monkeypatch):
    monkeypatch.setattr(samples, "JUDGED", 30)
    source = noise([i % 100 for i in range(1000)])
    sample = draw(source, model)
    assert len(source[0].opened) == len(sample.images) == 30
    assert len(set(sample.conditions)) == samples.MAX_CLASSES
