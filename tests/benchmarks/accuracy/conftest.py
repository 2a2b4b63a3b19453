"""A task so small that every arm is trained on it in a second."""

from pathlib import Path

import pytest
import torch
from pipelines import pixel_pipeline

from benchmarks.accuracy.pools import Pool
from benchmarks.accuracy.runs import Setup
from benchmarks.accuracy.tasks import Images, Split, Task, split
from dreamda_aug.models.unet import UNetModel


def numbered_images(count: int, size: int = 16) -> Images:
    """Grey images that carry their number, labeled 0, 1, 2, 0, ..."""
    numbers = torch.arange(count)
    pixels = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(count))
    pixels = (pixels * 255).to(torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = numbers % 256, numbers // 256
    return Images(pixels, numbers % 3)


def read_numbered(place: Path) -> tuple[Images, Images]:
    return numbered_images(300), numbered_images(60)


@pytest.fixture
def tiny() -> Task:
    """Three classes of 16×16 pixels, eight steps."""
    return Task("tiny", read_numbered, 16, 1, 3, ((2, 3),), "small_cnn", 8, batch_size=6,
                model="none", reverse_steps=4, validation_images=30, judge=None)  # fmt: skip


@pytest.fixture
def images(tiny) -> Split:
    """Two shots per class of the tiny task."""
    return split(tiny, tiny.read(Path()), 2, 0)


@pytest.fixture
def noise_pool():
    """Count -> a pool of that many images of noise."""

    def make(count: int) -> Pool:
        made = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1))
        return Pool((made * 255).to(torch.uint8), torch.arange(count) % 3, 1.5)

    return make


@pytest.fixture
def model() -> UNetModel:
    return UNetModel(pixel_pipeline())


@pytest.fixture
def setup_with_model(tmp_path, tiny) -> Setup:
    folder = tmp_path / "model"
    pixel_pipeline().save_pretrained(folder)
    return Setup(tiny, Path(), tmp_path / "state", str(folder), device="cpu")
