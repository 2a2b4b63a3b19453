"""The plain loop and the plain rows that the fast paths are compared with."""

import copy
from unittest.mock import patch

import pytest
import torch
from pipelines import pixel_pipeline, sampler

from benchmarks.common.plain import plain_loop
from benchmarks.speed.bench import seeds_of
from dreamda_aug import BottleneckNoise, load_model
from dreamda_aug.generation.sampler import Request
from dreamda_aug.models.unet import UNetModel


@pytest.mark.parametrize("kind", ["pixel", "text"])
def test_the_plain_loop_makes_the_images_that_exact_mode_makes(kind, sd_pipeline):
    model = (load_model(copy.deepcopy(sd_pipeline)) if kind == "text"
                else UNetModel(pixel_pipeline()))
    synthesizer = sampler(model, "official", steps=5, noise_scale=1.0,
                          perturbation=BottleneckNoise())
    x = torch.rand(2, model.channels, *model.image_size)
    condition = "a cat" if kind == "text" else None
    requests = [Request(i, condition, r) for i in range(2) for r in range(2)]
    with torch.no_grad():
        plain = torch.cat([
            plain_loop(synthesizer, x[r.image][None], 4 if condition else 2, condition,
                       *seeds_of(synthesizer, x[r.image], r)) for r in requests])
    assert (plain[0] - plain[1]).abs().max() > 1e-2
    with patch("dreamda_aug.generation.sampler.STORAGE_DTYPE", torch.float32):
        made = synthesizer.synthesize(x, requests).images
    torch.testing.assert_close(made, plain, atol=5e-4, rtol=0)
