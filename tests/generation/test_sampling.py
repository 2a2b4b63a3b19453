"""The reverse process: exact replay, the fewest rows, and what each dial does to an image."""

import pytest
import torch
from pipelines import images, pixel_pipeline, sampler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dreamda_aug import CycleDiffusion, DDIMInversion
from dreamda_aug.generation.sampler import Request
from dreamda_aug.generation.sampling import Run
from dreamda_aug.models import load_model

STEPS = 5
RUN = 4  # strength 0.8


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


def test_less_replay_more_noise_and_the_asymmetric_rule_move_images_further(bundled):
    x = images(bundled)

    def moved(**settings):
        made = make(bundled, **settings).synthesize(x, [Request(0), Request(1)]).images
        return (made - x).abs().mean()

    still, less, least = (moved(replay=replay, noise_scale=0.0) for replay in (1.0, 0.95, 0.8))
    assert still < 1e-4 < less < least
    assert moved(noise_scale=0.5) < moved(noise_scale=4.0)
    assert moved(noise_scale=1.0, update_rule="symmetric") < moved(noise_scale=1.0)


def test_guidance_in_a_part_of_the_run_is_neither_that_in_the_whole_nor_none(text):
    x, requests = images(text, 1), [Request(0, "a cat")]
    full, part, none = (make(text, guidance_interval=interval).synthesize(x, requests).images
                        for interval in ((0.0, 1.0), (0.2, 0.5), (0.0, 0.0)))
    assert not torch.allclose(full, part) and not torch.allclose(none, part)
    plain = make(text, guidance_scale=1.0).synthesize(x, requests).images
    assert torch.equal(none, plain)


class Waits(TorchDispatchMode):
    """Counts what makes the CPU wait for a GPU, or copy to it: between two calls of the U-Net.

    ``item()``, ``bool()`` and ``tolist()`` read a number; masks are looked up with ``nonzero``;
    ``torch.tensor`` makes a tensor on the CPU first. And what makes float64, which Apple's GPUs
    do not have.
    """

    NAMES = ("_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.calls, self.found, self._recent, self.wide = 0, [], [], []

    def unet_is_called(self):
        if self.calls:  # before the first call, the batch is prepared
            self.found += self._recent
        self.calls, self._recent = self.calls + 1, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name.startswith(self.NAMES):
            self._recent.append(name)
        result = function(*args, **(kwargs or {}))
        self.wide += [name for each in tree_leaves(result)
                      if isinstance(each, torch.Tensor) and each.dtype == torch.float64]
        return result


@pytest.mark.parametrize("kind, settings", [
    ("pixel", {"replay": 0.8}), ("text", {"guidance_interval": (0.3, 0.7)}),
    ("text", {"update_rule": "symmetric", "solver": "dpmsolver++"}),
    ("pixel", {"inversion": DDIMInversion(), "eta": 0.0}),
])
def test_no_step_waits_for_the_gpu_or_needs_float64(kind, settings, text, monkeypatch):
    model = load_model(pixel_pipeline("sample")) if kind == "pixel" else text
    x, condition = images(model), "a cat" if kind == "text" else None
    waits, predict = Waits(), model.predict
    monkeypatch.setattr(model, "predict",
                        lambda *args: waits.unet_is_called() or predict(*args))
    generator = make(model, **settings)
    trajectories = [t for t in generator.invert(x) for _ in range(2)]
    waits.calls = 0
    with waits:
        generator.generate(trajectories, [condition] * 4)
        assert (waits.calls, waits.found) == (4, [])
        waits.calls = 0
        generator.invert(x)
        assert waits.calls >= 4 and not waits.found
        generator.synthesize(x, [Request(0, condition), Request(1, condition)])
        assert not waits.wide


def test_an_inversion_follows_its_seed(pixel):
    core = make(pixel)
    run = Run(pixel, core.settings, core.schedule)

    def inverted(*seeds):
        return run.invert(images(pixel), (None, None), seeds, torch.float32)

    first, second = inverted(3, 4)
    again, other = inverted(3, 5)
    assert torch.equal(first.residuals, again.residuals) and torch.equal(first.x_T, again.x_T)
    assert not torch.equal(second.x_T, other.x_T)


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
