"""The plain loop and the plain rows that the fast paths are compared with."""

import copy
from unittest.mock import patch

import pytest
import torch
from pipelines import pixel_pipeline, sampler

from benchmarks.common.plain import plain_loop, plain_rows
from benchmarks.speed.bench import seeds_of
from dreamda_aug import BottleneckNoise, load_model
from dreamda_aug.generation.sampler import Request
from dreamda_aug.models import DiffusionModel
from dreamda_aug.models.unet import PixelModel


@pytest.mark.parametrize("kind", ["pixel", "text"])
def test_the_plain_loop_makes_the_images_that_exact_mode_makes(kind, sd_pipeline):
    model = (load_model(copy.deepcopy(sd_pipeline)) if kind == "text"
                else PixelModel(pixel_pipeline()))
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


def test_plain_rows_run_the_encoder_for_every_decoder_row():
    model = PixelModel(pixel_pipeline())
    assert isinstance(plain_rows(model), DiffusionModel)
    x, hook = torch.rand(1, 1, 16, 16), model.hook
    requests = [Request(0, None, r) for r in range(2)]

    def rows(what):
        before = hook.encoder_rows, hook.decoder_rows
        sampler(what, "paper", steps=4).synthesize(x, requests)
        return hook.encoder_rows - before[0], hook.decoder_rows - before[1]

    # 3 steps of inversion; then a clean row and a perturbed one for each of two replicas
    assert rows(plain_rows(model)) == (3 + 1 + 2 + 2 * 4, 3 + 1 + 2 + 2 * 4)
    assert rows(model) == (3 + 1 + 2 * 2, 3 + 1 + 2 + 2 * 4)
