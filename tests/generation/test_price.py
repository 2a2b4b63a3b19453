"""Rows are counted before a run as the hook counts them during it."""

import copy
from itertools import product

import pytest
import torch
from diffusers import DDIMScheduler
from pipelines import pixel_pipeline, sampler

from dreamda_aug import CycleDiffusion, DDIMInversion, load_model
from dreamda_aug.generation.price import Rows, denoiser_rows
from dreamda_aug.generation.sampler import Request
from dreamda_aug.method.solvers import SOLVERS
from dreamda_aug.models.unet import PixelModel

IMAGES, RATIO = 2, 2


@pytest.fixture(params=["text", "zero terminal SNR"])
def model(request, sd_pipeline):
    if request.param == "text":
        return load_model(copy.deepcopy(sd_pipeline))
    pipeline = pixel_pipeline(num_classes=3)
    pipeline.scheduler = DDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False)
    return PixelModel(pipeline, null_class=None)


@pytest.mark.parametrize("inversion, eta", [
    (CycleDiffusion(), 1.0), (DDIMInversion(), 0.0), (DDIMInversion(exact=False), 0.0)])
def test_rows_are_those_that_the_hook_counts(model, inversion, eta):
    """For every solver, rule and kind of guidance, with and without replay and noise."""
    images = torch.rand(IMAGES, model.channels, *model.image_size)
    condition = "a cat" if model.condition_kind == "text" else 1
    requests = [Request(i, condition, r) for i in range(IMAGES) for r in range(RATIO)]
    for solver, rule, guidance, (replay, noise_scale) in product(
        SOLVERS, ("symmetric", "asymmetric"), (1.0, (0.0, 1.0), (0.3, 0.7)),
        ((1.0, 1.0), (0.5, 0.0), (0.0, 1.0)),
    ):
        guided = {} if guidance == 1.0 else {"guidance_scale": 3.0, "guidance_interval": guidance}
        run = sampler(model, steps=4, strength=1.0, solver=solver, update_rule=rule, eta=eta,
                      inversion=inversion, replay=replay, noise_scale=noise_scale,
                      timestep_spacing="uniform", **{"guidance_scale": 1.0, **guided})
        before = model.hook.encoder_rows, model.hook.decoder_rows
        assert not any(run.synthesize(images, requests).events)
        counted = Rows(model.hook.encoder_rows - before[0], model.hook.decoder_rows - before[1])
        assert counted == denoiser_rows(
            run, inversions=IMAGES, samples=len(requests)), run.settings.summary()


def test_the_price_in_whole_passes_counts_a_second_decoder_pass_half():
    assert Rows(10, 10).whole == 10 and Rows(10, 20).whole == 15 and Rows(1, 2).whole == 2
