"""Grey and deep images through a Stable Diffusion pipeline, which knows 8-bit colour only."""

import copy

import numpy as np
import PIL.Image
import pytest
import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from dreamda_aug import DreamDAugment, load_model

# 12 bits of a detector in 16, a full 16-bit range, and Hounsfield units with their sign.
RANGES = {"12 bits": (0, 4095), "16 bits": (0, 65535), "Hounsfield": (-1024, 3071)}


def values(low: int, high: int, dtype) -> np.ndarray:
    array = np.random.default_rng(0).integers(low, high + 1, (16, 16))
    array[0, 0], array[0, 1] = low, high
    return array.astype(dtype)


@pytest.fixture
def lossless(sd_pipeline, monkeypatch):
    """The tiny VAE is random; this one folds 2×2 grey pixels into the four latent channels."""
    model = load_model(copy.deepcopy(sd_pipeline))
    monkeypatch.setattr(model, "encode", lambda x: pixel_unshuffle(x[:, :1] * 2 - 1, 2))
    monkeypatch.setattr(model, "decode", lambda latents: (
        pixel_shuffle(latents, 2) / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1))
    return model


@pytest.mark.parametrize("name", RANGES)
def test_without_noise_deep_images_keep_their_values(lossless, name):
    """To 2 in 65,535: float32 through six steps of guidance, and the rounding at the end."""
    low, high = RANGES[name]
    augment = DreamDAugment(lossless, "paper", p=1.0, prompt="", cache=None, steps=6,
                            guidance_scale=3.0, noise_scale=0.0)
    tolerance = max(1, 2 * (high - low) / 65535)
    images = [torch.from_numpy(values(low, high, np.int32))[None]]
    if low >= 0:
        array = values(low, high, np.uint16)
        images += [PIL.Image.fromarray(array), torch.from_numpy(array)[None]]
    for image in images:
        made = augment(image)
        assert type(made) is type(image) or image.mode == made.mode == "I;16"
        difference = np.asarray(made).astype(np.int64) - np.asarray(image).astype(np.int64)
        assert np.abs(difference).max() <= tolerance
