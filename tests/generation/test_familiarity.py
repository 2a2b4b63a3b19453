"""Whether the bundled model tells its own kind of images from others."""

import warnings

import pytest
import torch
from pipelines import pixel_pipeline
from sklearn.datasets import load_digits
from torchvision.transforms.v2 import functional as F

from dreamda_aug import DreamDAugment, Synthesizer
from dreamda_aug.bundled import FashionMNISTSample
from dreamda_aug.generation.familiarity import FOREIGN_RATIO, denoising_errors, foreignness


@pytest.fixture(scope="module")
def clothes():
    return {split: FashionMNISTSample(split).data[::12, None].float()[:16] / 255
            for split in ("train", "test")}


@pytest.fixture(scope="module")
def digits():
    images = torch.tensor(load_digits().images[:16, None] / 16, dtype=torch.float32)
    return F.resize(images, [28, 28], antialias=True)


def test_clothes_are_familiar_and_digits_are_not(bundled, clothes, digits):
    assert foreignness(bundled, clothes["test"], clothes["train"]) < FOREIGN_RATIO
    assert foreignness(bundled, digits, clothes["train"]) > FOREIGN_RATIO


def test_an_images_error_does_not_depend_on_its_batch(bundled, clothes):
    images = clothes["test"][:4]
    together = denoising_errors(bundled, images)
    alone = torch.cat([denoising_errors(bundled, image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert together.shape == (4,) and (together > 0).all()


def test_a_few_images_say_nothing(bundled, clothes):
    assert foreignness(bundled, clothes["test"][:7], clothes["train"]) is None


def test_a_transform_says_once_that_images_are_foreign_when_it_has_seen_some(digits, clothes):
    augment = DreamDAugment(preset="samples", p=1.0, labels_getter=None, cache=None, steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for image in [*digits[:7], *[digits[0]] * 3]:  # the same image again says nothing new
            augment(image)
    with pytest.warns(UserWarning, match="unlike what the bundled model was trained on") as said:
        for image in digits[7:10]:
            augment(image)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Synthesizer(preset="samples", cache=None, steps=2).synthesize(list(clothes["test"]))
        known_no_clothes = Synthesizer(pixel_pipeline(), "paper", cache=None, steps=2)
        known_no_clothes.synthesize(list(digits))
