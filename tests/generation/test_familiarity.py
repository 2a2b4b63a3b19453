"""Whether the bundled model tells its own kind of images from others."""

import pytest
import torch
from sklearn.datasets import load_digits
from torchvision.transforms.v2 import functional as F

from dreamda_aug.bundled import FashionMNISTSample
from dreamda_aug.generation.familiarity import FOREIGN_RATIO, denoising_errors, foreignness


@pytest.fixture(scope="module")
def clothes():
    return {split: FashionMNISTSample(split).data[::12, None].float()[:16] / 255
            for split in ("train", "test")}


def test_clothes_are_familiar_and_digits_are_not(bundled, clothes):
    digits = torch.tensor(load_digits().images[:16, None] / 16, dtype=torch.float32)
    digits = F.resize(digits, [28, 28], antialias=True)
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
