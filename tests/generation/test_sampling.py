"""The reverse process: exact replay, the fewest rows, and what each dial does to an image."""

import copy

import pytest
import torch
from pipelines import pixel_pipeline
from torch.utils._python_dispatch import TorchDispatchMode

from dreamda_aug import CycleDiffusion, DDIMInversion
from dreamda_aug.generation.tensors import Request, TensorSynthesizer
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
    return TensorSynthesizer(model, preset, **{"steps": STEPS, **overrides})


@pytest.mark.parametrize("inversion", [CycleDiffusion(), DDIMInversion()])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rule", ["asymmetric", "symmetric"])
def test_zero_noise_reproduces_the_image(bundled, inversion, eta, rule):
    x = images(bundled)
    generator = make(bundled, inversion=inversion, eta=eta, update_rule=rule, noise_scale=0.0)
    assert (generator.synthesize(x, [Request(0), Request(1)]).images - x).abs().max() <= 1e-4


@pytest.mark.parametrize("inversion", [CycleDiffusion(), DDIMInversion()])
@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_zero_noise_reproduces_the_latents_with_equal_prompts(
    text, inversion, guidance_scale, eta, monkeypatch
):
    """In latents: the VAE loses a little by itself."""
    x = images(text)
    monkeypatch.setattr(text, "decode", lambda latents: latents)
    generator = make(text, inversion=inversion, eta=eta, guidance_scale=guidance_scale,
                     noise_scale=0.0, source_prompt="")
    made = generator.synthesize(x, [Request(0, ""), Request(1, "")]).images
    assert (made - text.encode(x)).abs().max() <= 1e-4


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_zero_noise_reproduces_the_image_for_every_prediction_type(prediction_type):
    model = PixelModel(pixel_pipeline(prediction_type))
    x = images(model)
    made = make(model, noise_scale=0.0).synthesize(x, [Request(0), Request(1)]).images
    assert (made - x).abs().max() <= 1e-4


@pytest.mark.parametrize("kind, rule, guidance, encoder, decoder", [
    ("text", "symmetric", 7.5, 2, 2), ("text", "asymmetric", 7.5, 2, 4),
    ("text", "symmetric", 1.0, 1, 1), ("text", "asymmetric", 1.0, 1, 2),
    ("pixel", "symmetric", 7.5, 1, 1), ("pixel", "asymmetric", 7.5, 1, 2),
])
def test_unet_rows_per_step_are_the_fewest_possible(
    kind, rule, guidance, encoder, decoder, request
):
    model = request.getfixturevalue(kind)
    generator = make(model, update_rule=rule, guidance_scale=guidance)
    trajectories = generator.invert(images(model, 3))
    assert (model.hook.encoder_rows, model.hook.decoder_rows) == (3 * RUN, 3 * RUN)
    generator.generate(trajectories, [""] * 3)
    assert model.hook.encoder_rows - 3 * RUN == 3 * RUN * encoder
    assert model.hook.decoder_rows - 3 * RUN == 3 * RUN * decoder


def test_replicas_share_the_first_step_below_the_bottleneck(pixel):
    generator = make(pixel)
    (trajectory,) = generator.invert(images(pixel, 1))
    before = pixel.hook.encoder_rows
    generator.generate([trajectory] * 5)
    assert pixel.hook.encoder_rows - before == 1 + 5 * (RUN - 1)


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


def run(model, **settings):
    torch.manual_seed(0)
    x = torch.rand(3, model.channels, *model.image_size)
    condition = "a cat" if model.condition_kind == "text" else None
    generator = TensorSynthesizer(model, "paper", **{"steps": 4, "noise_scale": 1.0, **settings})
    requests = [Request(i, condition, r) for i in range(3) for r in range(2)]
    return generator.synthesize(x, requests).images


def test_guidance_on_part_of_the_run_saves_its_rows(sd_pipeline):
    model = load_model(copy.deepcopy(sd_pipeline))
    settings = dict(steps=10, strength=1.0, update_rule="symmetric", batch_size=1)
    full = run(model, **settings)
    rows = model.hook.encoder_rows
    part = run(model, guidance_interval=(0.2, 0.5), **settings)
    spent = model.hook.encoder_rows - rows
    assert rows == 3 * 10 + 6 * 20 and spent == 3 * 10 + 6 * (10 + 3)
    assert not torch.allclose(full, part)
    same = run(model, guidance_interval=(0.0, 1.0), **settings)
    assert torch.equal(full, same)
    with pytest.raises(ValueError, match=r"guidance_interval must rise within \[0, 1\]"):
        run(model, guidance_interval=(0.5, 0.2))


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
    generator = TensorSynthesizer(model, "paper", steps=5, **settings)
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
