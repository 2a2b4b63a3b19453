import warnings

import pytest
import torch
from conftest import pixel_pipeline

from dreamda_aug import CycleDiffusion, DDIMInversion, Generator, LatentCache, Settings
from dreamda_aug.backbones import load_backbone
from dreamda_aug.backbones.unet import PixelBackbone
from dreamda_aug.errors import GenerationError
from dreamda_aug.generator import Request
from dreamda_aug.settings import PRESETS, resolve_settings

STEPS = 5
RUN = 4  # strength 0.8


@pytest.fixture
def pixel():
    return PixelBackbone(pixel_pipeline())


@pytest.fixture
def text(sd_pipeline):
    return load_backbone(sd_pipeline)


def images(backbone, count=2):
    torch.manual_seed(0)
    return torch.rand(count, backbone.channels, *backbone.image_size)


def make(backbone, preset="paper", **overrides):
    return Generator(backbone, preset, **{"steps": STEPS, **overrides})


@pytest.mark.parametrize("inversion", [CycleDiffusion(), DDIMInversion()])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("rule", ["asymmetric", "symmetric"])
def test_zero_noise_reproduces_the_image(bundled, inversion, eta, rule):
    x = images(bundled)
    generator = make(bundled, inversion=inversion, eta=eta, update_rule=rule, noise_scale=0.0)
    assert (generator.augment(x, [Request(0), Request(1)]) - x).abs().max() <= 1e-4


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
    made = generator.augment(x, [Request(0, ""), Request(1, "")])
    assert (made - text.encode(x)).abs().max() <= 1e-4


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_zero_noise_reproduces_the_image_for_every_prediction_type(prediction_type):
    backbone = PixelBackbone(pixel_pipeline(prediction_type))
    x = images(backbone)
    made = make(backbone, noise_scale=0.0).augment(x, [Request(0), Request(1)])
    assert (made - x).abs().max() <= 1e-4


@pytest.mark.parametrize("kind, rule, guidance, encoder, decoder", [
    ("text", "symmetric", 7.5, 2, 2), ("text", "asymmetric", 7.5, 2, 4),
    ("text", "symmetric", 1.0, 1, 1), ("text", "asymmetric", 1.0, 1, 2),
    ("pixel", "symmetric", 7.5, 1, 1), ("pixel", "asymmetric", 7.5, 1, 2),
])
def test_unet_rows_per_step_are_the_fewest_possible(
    kind, rule, guidance, encoder, decoder, request
):
    backbone = request.getfixturevalue(kind)
    generator = make(backbone, update_rule=rule, guidance_scale=guidance)
    trajectories = generator.invert(images(backbone, 3))
    assert (backbone.tap.encoder_rows, backbone.tap.decoder_rows) == (3 * RUN, 3 * RUN)
    generator.generate(trajectories, [""] * 3)
    assert backbone.tap.encoder_rows - 3 * RUN == 3 * RUN * encoder
    assert backbone.tap.decoder_rows - 3 * RUN == 3 * RUN * decoder


def test_replicas_share_the_first_step_below_the_bottleneck(pixel):
    generator = make(pixel)
    (trajectory,) = generator.invert(images(pixel, 1))
    before = pixel.tap.encoder_rows
    generator.generate([trajectory] * 5)
    assert pixel.tap.encoder_rows - before == 1 + 5 * (RUN - 1)


def test_branching_and_plain_rows_give_the_same_image(text):
    """Sharing the first step between replicas must not change any of them."""
    generator = make(text)
    (trajectory,) = generator.invert(images(text, 1))
    together = generator.generate([trajectory] * 3, ["a"] * 3, [1, 2, 3])
    alone = [generator.generate([trajectory], ["a"], [seed]) for seed in (1, 2, 3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


@pytest.mark.parametrize("adherence", [1.0, 0.9, 0.0])
def test_a_sample_is_the_same_alone_and_in_any_batch(bundled, adherence):
    x = images(bundled, 3)
    settings = dict(preset="recommended", steps=STEPS, noise_scale=2.0, adherence=adherence)
    wanted = [Request(i, None, r, epoch=1) for i in range(3) for r in range(2)]
    all_together = Generator(bundled, **settings).augment(x, wanted)
    small_batches = Generator(bundled, batch_size=4, **settings).augment(x, wanted[::-1])
    alone = Generator(bundled, **settings).augment(x[2:], [Request(0, None, 1, epoch=1)])
    torch.testing.assert_close(all_together, small_batches.flip(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(all_together[5:], alone, atol=1e-5, rtol=0)


def test_replicas_epochs_and_seeds_differ(bundled):
    x = images(bundled, 1)
    generator = make(bundled, noise_scale=2.0)
    other = make(bundled, noise_scale=2.0, rng_seed=1)
    made = [*generator.augment(x, [Request(0), Request(0, None, 1), Request(0, epoch=1)]),
            *other.augment(x, [Request(0)])]
    for i, a in enumerate(made):
        assert all((a - b).abs().max() > 1e-2 for b in made[i + 1 :])


def test_adherence_zero_is_img2img_and_makes_no_inversion(pixel):
    """Against diffusers' own scheduler, step by step, with the same noise."""
    from diffusers import DDIMScheduler

    from dreamda_aug.seeding import SOURCE, STEP, seeded_normal

    generator = make(pixel, adherence=0.0, noise_scale=0.0)
    x = images(pixel, 1)
    trajectories = generator.invert(x)
    assert pixel.tap.encoder_rows == 0
    made = generator.generate(trajectories, seeds=[5])
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


def test_lower_adherence_moves_images_further(bundled):
    x = images(bundled, 4)
    moved = [
        (make(bundled, adherence=a, noise_scale=0.0).augment(x, [Request(i) for i in range(4)]) - x)
        .abs().mean() for a in (1.0, 0.95, 0.8)
    ]
    assert moved[0] < 1e-4 < moved[1] < moved[2]


def test_more_noise_moves_images_further_and_asymmetric_more_than_symmetric(bundled):
    x = images(bundled, 4)

    def moved(**settings):
        made = make(bundled, **settings).augment(x, [Request(i) for i in range(4)])
        return (made - x).abs().mean()

    assert moved(noise_scale=0.5) < moved(noise_scale=4.0)
    assert moved(noise_scale=1.0, update_rule="symmetric") < moved(noise_scale=1.0)


def test_paths_give_replicas_different_starts(pixel):
    generator = make(pixel, paths=2, noise_scale=0.0)
    generator.augment(images(pixel, 1), [Request(0, None, r) for r in range(4)])
    assert generator.inversions == 2


def test_cached_and_uncached_generation_are_equal(pixel, tmp_path):
    x, wanted = images(pixel), [Request(0), Request(1, None, 1)]
    plain = make(pixel).augment(x, wanted)
    first, second = (make(pixel, cache=LatentCache(tmp_path)) for _ in range(2))
    assert torch.equal(first.augment(x, wanted), plain)
    assert torch.equal(second.augment(x, wanted), plain)
    assert (first.inversions, second.inversions) == (2, 0)


@pytest.mark.parametrize("change", [
    dict(eta=0.5), dict(steps=20), dict(strength=0.5), dict(inversion=DDIMInversion()),
    dict(rng_seed=1), dict(adherence=0.0),
])
def test_whatever_changes_the_inversion_changes_its_key(pixel, change):
    assert make(pixel).inversion_key("d", 0, None) != make(pixel, **change).inversion_key(
        "d", 0, None)


@pytest.mark.parametrize("change", [
    dict(batch_size=3), dict(noise_scale=9.0), dict(guidance_scale=2.0), dict(adherence=0.5),
    dict(update_rule="symmetric"),
])
def test_whatever_does_not_touch_the_inversion_keeps_its_key(pixel, change):
    assert make(pixel).inversion_key("d", 0, None) == make(pixel, **change).inversion_key(
        "d", 0, None)


def test_memory_that_runs_out_halves_the_batch_and_goes_on(pixel, monkeypatch, caplog):
    predict = pixel.predict

    def limited(x_t, t, condition):
        if len(x_t) > 2:
            raise torch.OutOfMemoryError("simulated")
        return predict(x_t, t, condition)

    generator = make(pixel, batch_size=8, noise_scale=0.0)
    x, wanted = images(pixel, 5), [Request(i) for i in range(5)]
    monkeypatch.setattr(pixel, "predict", limited)
    torch.testing.assert_close(generator.augment(x, wanted), x, atol=1e-4, rtol=0)
    assert generator.batch_size == 2 and "batch_size=2" in caplog.text


def test_memory_that_is_never_enough_is_an_error(pixel, monkeypatch):
    def never(*args):
        raise torch.OutOfMemoryError("simulated")

    monkeypatch.setattr(pixel, "predict", never)
    with pytest.raises(GenerationError, match="memory ran out at batch_size 1"):
        make(pixel).invert(images(pixel))


def test_nan_from_the_unet_is_an_error(pixel):
    generator = make(pixel)
    trajectories = generator.invert(images(pixel))
    pixel.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(GenerationError, match=r"NaN or infinite pixels in 2 of 2 images"):
        generator.generate(trajectories)


def test_images_of_another_size_are_refused(pixel):
    with pytest.raises(ValueError, match=r"images must have shape \(B, 1, 16, 16\)"):
        make(pixel).augment(torch.rand(1, 3, 16, 16), [Request(0)])


def test_auto_without_a_calibration_warns_and_says_what_it_takes(pixel):
    with pytest.warns(UserWarning, match=r"not calibrated .* noise_scale=1\.0"):
        generator = Generator(pixel, "recommended")
    assert generator.settings.noise_scale == 1.0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_on_every_kind_of_backbone(preset, pixel, text):
    for backbone, condition in ((pixel, None), (text, "a cat")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            generator = Generator(backbone, preset, steps=4)
        made = generator.augment(images(backbone), [Request(0, condition), Request(1, condition)])
        assert made.shape == images(backbone).shape and 0 <= made.min() and made.max() <= 1


@pytest.mark.parametrize("wrong, message", [
    (dict(steps=0), "steps must be a positive integer, got 0"),
    (dict(strength=0), r"strength must lie in \(0, 1\], got 0"),
    (dict(eta=1.5), r"eta must lie in \[0, 1\], got 1.5"),
    (dict(adherence=-0.1), r"adherence must lie in \[0, 1\] or be 'auto', got -0.1"),
    (dict(adherence="more"), r"adherence must lie in \[0, 1\] or be 'auto', got 'more'"),
    (dict(noise_scale=-1), "noise_scale must be a number >= 0 or 'auto', got -1"),
    (dict(update_rule="both"), "update_rule must be 'asymmetric' or 'symmetric', got 'both'"),
    (dict(guidance_scale=-1), "guidance_scale must be >= 0, got -1"),
    (dict(paths=0), "paths must be a positive integer, got 0"),
    (dict(inversion=DDIMInversion(exact=False)), "only with eta=0, got eta=1.0"),
])
def test_settings_outside_their_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)


def test_unknown_presets_and_settings_are_refused_with_a_list():
    with pytest.raises(ValueError, match="preset must be one of paper, official, fast"):
        resolve_settings("papre")
    with pytest.raises(TypeError, match="'noise' is no setting; the settings are adherence"):
        resolve_settings("paper", noise=1)
    with pytest.raises(TypeError, match="preset must be a name or Settings, got int"):
        resolve_settings(3)


def test_batch_size_must_be_positive(pixel):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Generator(pixel, "paper", batch_size=0)
