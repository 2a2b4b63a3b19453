"""Zero noise leads back to the encoded image, in every precision and batch."""

import copy

import pytest
import torch
from diffusers import AutoencoderKL

from dreamda_aug import CycleDiffusion, DDIMInversion, load_model
from dreamda_aug.generation.tensors import Request, TensorSynthesizer
from dreamda_aug.models.codec import latent_range

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=DTYPES, ids=str)
def model(request, sd_pipeline):
    return load_model(copy.deepcopy(sd_pipeline).to(request.param))


@pytest.mark.parametrize("inversion", [CycleDiffusion(), DDIMInversion()])
@pytest.mark.parametrize("batch", [1, 7])
def test_replay_is_exact_for_latent_models(model, inversion, batch):
    eta = 1.0 if isinstance(inversion, CycleDiffusion) else 0.0
    core = TensorSynthesizer(model, "paper", steps=6, noise_scale=0.0, guidance_scale=1.0,
                             inversion=inversion, eta=eta, batch_size=7)
    x = torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    latents = []
    real = model.decode

    def decode(z):
        latents.append(z)
        return real(z)

    model.decode = decode
    core.synthesize(x, [Request(i) for i in range(batch)])
    expected = model.encode(x)
    error = (latents[0] - expected).abs().max() / expected.abs().max()
    assert error < 2e-3  # residuals are stored in float16


def test_the_denoiser_sees_one_layout_whatever_it_is_given(sd_pipeline):
    model = load_model(copy.deepcopy(sd_pipeline))
    x = torch.randn(2, 4, 8, 8)
    condition = model.embed(["a", "b"])
    t = torch.tensor(10)
    plain = model.predict(x, t, condition)
    strange = model.predict(x.contiguous(memory_format=torch.channels_last), t, condition)
    assert torch.equal(plain, strange)
    assert plain.is_contiguous() and model.encode(torch.rand(2, 3, 16, 16)).is_contiguous()


@pytest.mark.parametrize("config", [
    dict(scaling_factor=0.5, shift_factor=0.3),
    dict(scaling_factor=0.5, latents_mean=[0.1, 0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0]),
    dict(scaling_factor=0.5),
])
def test_latents_are_shifted_and_scaled_as_the_vae_says(config):
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, **config)
    shift, scale = latent_range(vae)
    z = torch.randn(2, 4, 3, 3)
    mean = torch.tensor(config.get("latents_mean", [config.get("shift_factor", 0.0)] * 4))
    std = torch.tensor(config.get("latents_std", [1.0] * 4))
    expected = (z - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1) * 0.5
    torch.testing.assert_close((z - shift) * scale, expected)
