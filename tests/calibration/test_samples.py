"""The sample that dials are calibrated on."""

import PIL.Image
import pytest
import torch
from pipelines import pixel_pipeline

from dreamda_aug.calibration import samples
from dreamda_aug.calibration.samples import draw_sample
from dreamda_aug.models.unet import PixelModel


class Images:
    """Numbered images; some cannot be read, some are equal."""

    def __init__(self, labels, broken=(), equal=()):
        self.labels, self.broken, self.equal = labels, broken, equal
        self.opened = []

    def open(self, index):
        self.opened.append(index)
        if index in self.broken:
            raise OSError("broken")
        generator = torch.Generator().manual_seed(0 if index in self.equal else index + 1)
        return PIL.Image.fromarray(
            torch.randint(256, (20, 16), generator=generator, dtype=torch.uint8).numpy())


@pytest.fixture(scope="module")
def model():
    return PixelModel(pixel_pipeline())


def draw(images, model, indices=None):
    indices = range(len(images.labels)) if indices is None else indices
    return draw_sample(images, indices, model, lambda index: images.labels[index])


def test_it_is_the_same_every_time_and_even_over_classes(model):
    labels = [0] * 50 + [1] * 10 + [2] * 3
    sample = draw(Images(labels), model)
    again = draw(Images(labels), model)
    assert sample.digest == again.digest and torch.equal(sample.images, again.images)
    assert sample.images.shape[1:] == (1, 16, 16) and sample.measured == 24
    counts = torch.tensor(sample.conditions[:12]).bincount().tolist()
    assert sum(counts) == 12 and max(counts) - counts[2] <= 2
    # numbered anew, each class by one number
    assert len(set(zip(sample.conditions, sample.labels.tolist()))) == 3


def test_it_changes_with_what_it_is_drawn_from(model):
    labels = [0, 1] * 10
    one, other = draw(Images(labels), model), draw(Images(labels), model, range(10))
    assert one.digest != other.digest and len(other.images) == 10


def test_unreadable_images_and_second_copies_are_passed_over(model):
    sample = draw(Images([0, 1] * 6, broken=(0, 1), equal=(2, 3, 4)), model)
    assert len(sample.images) == 12 - 2 - 2
    assert draw(Images([0, 1], broken=(0,)), model) is None


def test_no_more_is_read_than_is_used(model, monkeypatch):
    monkeypatch.setattr(samples, "JUDGED", 30)
    images = Images([i % 100 for i in range(1000)])
    sample = draw(images, model)
    assert len(images.opened) == len(sample.images) == 30
    assert len(set(sample.conditions)) == samples.MAX_CLASSES


def test_labels_may_be_words_and_arrays(model):
    images = Images(["cat", torch.tensor([3]), "cat", torch.tensor([3])])
    sample = draw_sample(images, range(4), model, lambda index: None)
    assert sorted(sample.labels.tolist()) == [0, 0, 1, 1]
