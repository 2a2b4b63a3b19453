"""Tiny models that tests of generation share."""

import copy

import pytest
from pipelines import pixel_pipeline

from dreamda_aug import load_model
from dreamda_aug.models.unet import UNetModel


@pytest.fixture
def pixel():
    return UNetModel(pixel_pipeline(), "tiny")


@pytest.fixture
def text(sd_pipeline):
    return load_model(copy.deepcopy(sd_pipeline))
