"""Seed images, and what makes images of them."""

import fsspec
import pytest
from expansion.folders import write_images
from pipelines import pixel_pipeline

from dreamda_aug import Synthesizer
from dreamda_aug.models.unet import UNetModel


@pytest.fixture(scope="module")
def synthesizer():
    return Synthesizer(UNetModel(pixel_pipeline()), "paper", steps=3, noise_scale=8.0,
                       cache=None, batch_size=4)


@pytest.fixture(scope="module")
def whole_train(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "train", {"cat": 3, "dog": 2})


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """The same, and a file that is no image."""
    root = write_images(tmp_path_factory.mktemp("data") / "train", {"cat": 3, "dog": 2})
    (root / "dog" / "2.png").write_bytes(b"no image")
    return root


@pytest.fixture
def url():
    """A folder in the memory that fsspec opens."""
    fs = fsspec.filesystem("memory")
    fs.makedirs("/bucket", exist_ok=True)
    yield "memory://bucket/out"
    fs.rm("/bucket", recursive=True)
