"""The reverse process: exact replay, the fewest rows, and what each dial does to an image."""

import copy

import pytest
import torch
from pipelines import pixel_pipeline, sampler
from torch.utils._python_dispatch import TorchDispatchMode

from dreamda_aug import CycleDiffusion, DDIMInversion
from dreamda_aug.generation.sampler import Request
from dreamda_aug.models import load_model
from dreamda_aug.models.unet import PixelModel

STEPS = 5
RUN = 4  # strength 0.8


@pytest.fixture
def pixel():
    return PixelModel(pixel_pipeline())


@pytest.fixture
def text(sd_pipeline):
    return load_model(copy.deepcopy(sd_pipeline))


def images(model, count=2):
    torch.manual_seed(0)
    return torch.rand(count, model.channels, *model.image_size)


def make(model, preset="paper", **overrides):
    return sampler(model, preset, **{"steps": STEPS, **overrides})


@pytest.mark.parametrize("inversion, eta, rule, guidance_scale", [
    (CycleDiffusion(), 1.0, "asymmetric", 7.5), (CycleDiffusion(), 0.0, "symmetric", 1.0),
    (DDIMInversion(), 0.5, "symmetric", 7.5),
])
def test_zero_noise_reproduces_the_latents_with_equal_prompts(
    text, inversion, eta, rule, guidance_scale, monkeypatch
):
    """In latents: the VAE loses a little by itself."""
    x = images(text)
    monkeypatch.setattr(text, "decode", lambda latents: latents)
    generator = make(text, inversion=inversion, eta=eta, guidance_scale=guidance_scale,
                     update_rule=rule, noise_scale=0.0, source_prompt="")
    made = generator.synthesize(x, [Request(0, ""), Request(1, "")]).images
    assert (made - text.encode(x)).abs().max() <= 1e-4


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_zero_noise_reproduces_the_image_for_every_prediction_type(prediction_type):
    model = PixelModel(pixel_pipeline(prediction_type))
    x = images(model)
    made = make(model, noise_scale=0.0).synthesize(x, [Request(0), Request(1)]).images
    assert (made - x).abs().max() <= 1e-4


def test_branching_and_plain_rows_give_the_same_image(text):
    """Sharing the first step between replicas must not change any of them."""
    generator = make(text)
    (trajectory,) = generator.invert(images(text, 1))
    together = generator.generate([trajectory] * 3, ["a"] * 3, [1, 2, 3])
    alone = [generator.generate([trajectory], ["a"], [seed]) for seed in (1, 2, 3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


def test_replay_zero_is_img2img_and_makes_no_inversion(pixel):
    """Against diffusers' own scheduler, step by step, with the same noise."""
    from diffusers import DDIMScheduler

    from dreamda_aug.method.seeding import SOURCE, STEP, seeded_normal

    generator = make(pixel, replay=0.0, noise_scale=0.0)
    x = images(pixel, 1)
    trajectories = generator.invert(x)
    assert pixel.hook.encoder_rows == 0
    made = generator.generate(trajectories, sample_seeds=[5])
    scheduler = DDIMScheduler.from_config(pixel.pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    seed = torch.tensor([5])
    latent = trajectories[0].x_0[None].float()
    noise = seeded_normal(seed, 0, SOURCE, (1, 16, 16))
    latent = scheduler.add_noise(latent, noise, scheduler.timesteps[STEPS - RUN])
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps[STEPS - RUN :]):
            noise = seeded_normal(seed, step, STEP, (1, 16, 16))
            latent = scheduler.step(pixel.unet(latent, t).sample, t, latent, eta=1.0,
                                    variance_noise=noise).prev_sample
    torch.testing.assert_close(made, (latent / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


def test_lower_replay_moves_images_further(bundled):
    x, requests = images(bundled, 4), [Request(i) for i in range(4)]
    moved = [
        (make(bundled, replay=a, noise_scale=0.0).synthesize(x, requests).images - x)
        .abs().mean() for a in (1.0, 0.95, 0.8)
    ]
    assert moved[0] < 1e-4 < moved[1] < moved[2]


def test_more_noise_moves_images_further_and_asymmetric_more_than_symmetric(bundled):
    x = images(bundled, 4)

    def moved(**settings):
        made = make(bundled, **settings).synthesize(x, [Request(i) for i in range(4)]).images
        return (made - x).abs().mean()

    assert moved(noise_scale=0.5) < moved(noise_scale=4.0)
    assert moved(noise_scale=1.0, update_rule="symmetric") < moved(noise_scale=1.0)


def test_a_guidance_interval_of_the_whole_run_changes_nothing_and_a_part_does(text):
    x, requests = images(text, 1), [Request(0, "a cat")]
    full, same, part = (
        make(text, guidance_interval=interval).synthesize(x, requests).images
        for interval in ((0.0, 1.0), (0, 1), (0.2, 0.5)))
    assert torch.equal(full, same) and not torch.allclose(full, part)


class Waits(TorchDispatchMode):
    """Counts what makes the CPU wait for a GPU, or copy to it: between two calls of the U-Net.

    ``item()``, ``bool()`` and ``tolist()`` read a number; masks are looked up with ``nonzero``;
    ``torch.tensor`` makes a tensor on the CPU first.
    """

    NAMES = ("_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.calls, self.found, self._recent = 0, [], []

    def unet_is_called(self):
        if self.calls:  # before the first call, the batch is prepared
            self.found += self._recent
        self.calls, self._recent = self.calls + 1, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name.startswith(self.NAMES):
            self._recent.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [
    {}, {"update_rule": "symmetric"}, {"guidance_interval": (0.3, 0.7)}, {"replay": 0.8},
    {"inversion": DDIMInversion(), "eta": 0.0},
])
@pytest.mark.parametrize("kind", ["pixel", "text"])
def test_no_step_waits_for_the_gpu(kind, settings, sd_pipeline, monkeypatch):
    pipeline = pixel_pipeline("sample") if kind == "pixel" else copy.deepcopy(sd_pipeline)
    model, waits = load_model(pipeline), Waits()
    predict = model.predict
    monkeypatch.setattr(model, "predict",
                        lambda *args: waits.unet_is_called() or predict(*args))
    generator = make(model, **settings)
    condition = "a cat" if kind == "text" else None
    trajectories = [t for t in generator.invert(torch.rand(
        2, model.channels, *model.image_size)) for _ in range(2)]
    waits.calls = 0
    with waits:
        generator.generate(trajectories, [condition] * 4)
        assert (waits.calls, waits.found) == (4, [])
        waits.calls = 0
        generator.invert(torch.rand(2, model.channels, *model.image_size))
        assert waits.calls >= (4 if generator.settings.replay else 0) and not waits.found


def test_replicas_part_where_nothing_is_replayed(bundled):
    """The larger the part of the run that is free, the further replicas are apart."""
    x = images(bundled, 1)
    requests = [Request(0, replica=k) for k in range(4)]

    def spread(interval):
        made = make(bundled, steps=10, noise_scale=0.0, replay_interval=interval,
                    timestep_spacing="uniform").synthesize(x, requests).images
        return (made[1:] - made[:1]).square().mean().sqrt().item()

    whole, late, half, none = map(spread, ((0.0, 1.0), (0.0, 0.7), (0.0, 0.4), (0.0, 0.0)))
    assert whole < 1e-4 < late < min(half, none)


def test_an_interval_of_the_whole_run_changes_nothing_and_an_empty_one_draws_as_no_replay_does(
    pixel
):
    """From the recorded start, a free step is the sampler's own: mean plus fresh noise."""
    x = images(pixel, 1)
    default = make(pixel, replay=0.7).synthesize(x, [Request(0)]).images
    stated = make(pixel, replay=0.7, replay_interval=(0, 1)).synthesize(x, [Request(0)])
    assert torch.equal(default, stated.images)
    free = [make(pixel, replay=a, replay_interval=(0.5, 0.5)).synthesize(x, [Request(0)])
            for a in (0.2, 1.0)]
    assert torch.equal(free[0].images, free[1].images)
