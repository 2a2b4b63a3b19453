"""Small priors in folders, and images of two classes that they do not know."""

import PIL.Image
import pytest
import torch
from adaptation_images import squares


@pytest.fixture
def image_folder(tmp_path):
    """Twelve images in the class folders left and right."""
    for number, image in enumerate(squares(12)):
        place = tmp_path / "images" / ("left", "right")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        array = (image[0] * 255).round().to(torch.uint8).numpy()
        PIL.Image.fromarray(array).save(place / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def sd_folder(sd_pipeline, tmp_path):
    sd_pipeline.save_pretrained(tmp_path / "sd")
    return tmp_path / "sd"


@pytest.fixture
def sdxl_folder(tmp_path):
    pytest.importorskip("transformers")
    from benchmarks.families import pipelines

    pipelines.sdxl().save_pretrained(tmp_path / "sdxl")
    return tmp_path / "sdxl"
