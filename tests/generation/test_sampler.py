"""Tensors in, tensors out: batches, seeds, memory, and which inversions are used again."""

import copy
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import DDIMParallelScheduler, DDIMScheduler, EulerDiscreteScheduler
from pipelines import images, pixel_pipeline, sampler

from dreamda_aug import CycleDiffusion, DDIMInversion, LatentCache, load_model
from dreamda_aug.errors import GenerationError
from dreamda_aug.generation.sampler import Request
from dreamda_aug.models.unet import UNetModel

STEPS = 5


def make(model, preset="paper", **overrides):
    return sampler(model, preset, **{"steps": STEPS, **overrides})


@pytest.mark.parametrize("replay", [1.0, 0.9, 0.0])
def test_a_sample_is_the_same_alone_and_in_any_batch(bundled, replay):
    x = images(bundled, 3)
    settings = dict(preset="recommended", strength=0.5, noise_scale=2.0, replay=replay)
    wanted = [Request(i, None, r, epoch=1) for i in range(3) for r in range(2)]

    def run(images, requests, **options):
        return make(bundled, **settings, **options).synthesize(images, requests).images

    all_together = run(x, wanted)
    small_batches = run(x, wanted[::-1], batch_size=4)
    alone = run(x[2:], [Request(0, None, 1, epoch=1)])
    torch.testing.assert_close(all_together, small_batches.flip(0), atol=2e-5, rtol=0)
    torch.testing.assert_close(all_together[5:], alone, atol=2e-5, rtol=0)


def test_paths_give_replicas_different_starts(pixel):
    generator = make(pixel, paths=2, noise_scale=0.0)
    generator.synthesize(images(pixel, 1), [Request(0, None, r) for r in range(4)])
    assert generator.inversions == 2


def test_cached_and_uncached_generation_are_equal(pixel, tmp_path):
    x, wanted = images(pixel), [Request(0), Request(1, None, 1)]
    plain = make(pixel).synthesize(x, wanted).images
    first, second = (make(pixel, cache=LatentCache(tmp_path)) for _ in range(2))
    assert torch.equal(first.synthesize(x, wanted).images, plain)
    assert torch.equal(second.synthesize(x, wanted).images, plain)
    assert (first.inversions, second.inversions) == (2, 0)


def inverted(model, cache, image=0, condition=None, **settings):
    """How many inversions are computed for one image."""
    run = make(model, cache=cache, **settings)
    run.synthesize(images(model)[image][None], [Request(0, condition)])
    return run.inversions


def test_whatever_changes_an_inversion_is_inverted_anew_and_nothing_else_is(
    pixel, text, tmp_path
):
    cache = LatentCache(tmp_path)
    for change in ({}, dict(eta=0.5), dict(steps=10), dict(strength=0.5), dict(rng_seed=1),
                   dict(inversion=DDIMInversion()), dict(replay=0.0), dict(solver="heun"),
                   dict(timestep_spacing="uniform"), dict(image=1)):
        assert inverted(pixel, cache, **change) == 1, change
    for change in ({}, dict(batch_size=3), dict(noise_scale=9.0), dict(guidance_scale=2.0),
                   dict(replay=0.5), dict(update_rule="symmetric")):
        assert inverted(pixel, cache, **change) == 0, change
    # generation's own prompt plays no role, the inversion's does; without a null class both do
    asked = [("a cat", ""), ("a dog", ""), ("a cat", "a photo")]
    assert [inverted(text, cache, condition=condition, source_prompt=source)
            for condition, source in asked] == [1, 0, 1]
    for model, computed in ((UNetModel(pixel_pipeline(num_classes=4), null_class=3), [1, 0]),
                            (UNetModel(pixel_pipeline(num_classes=3)), [1, 1])):
        assert [inverted(model, cache, condition=label) for label in (0, 1)] == computed


def scheduler(pipeline, kind, **changes):
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **changes)


@torch.no_grad()
def scale(part, factor=1.1):
    for weight in part.parameters():
        weight.mul_(factor)


def behind_autograd(unet):
    for weight in unet.parameters():
        weight.data += 0.05


def add_lora(part):
    from peft import LoraConfig

    part.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))


LIVE = {
    "prediction type": lambda p: scheduler(p, DDIMScheduler, prediction_type="v_prediction"),
    "betas": lambda p: scheduler(p, DDIMScheduler, beta_end=0.02),
    "sigmas": lambda p: scheduler(p, EulerDiscreteScheduler, use_karras_sigmas=True),
    "U-Net": lambda p: scale(p.unet), "behind autograd": lambda p: behind_autograd(p.unet),
    "VAE": lambda p: scale(p.vae), "LoRA": lambda p: add_lora(p.unet),
    "SD 3's LoRA": lambda p: add_lora(p.transformer),
    "SD 3's third text encoder": lambda p: scale(p.text_encoder_3),
    "SD 3's shift": lambda p: scheduler(p, type(p.scheduler), shift=1.5),
}
CATS = [Request(0, "a cat"), Request(1, "a cat")]


def retrace(pipeline, folder):
    """What leads back to the images, unless the model has changed since their inversion."""
    return make(load_model(pipeline), steps=4, strength=1.0, noise_scale=0.0, guidance_scale=1.0,
                source_prompt="a cat", cache=LatentCache(folder))


@pytest.mark.parametrize("change", LIVE)
def test_a_change_of_a_live_pipeline_is_noticed(sd_pipeline, tmp_path, change):
    from benchmarks.families import pipelines

    pipeline = copy.deepcopy(pipelines.sd3() if change.startswith("SD 3") else sd_pipeline)
    core = retrace(pipeline, tmp_path)
    x = images(core.model)
    for _ in range(2):
        core.synthesize(x, CATS)
        assert core.inversions == 2
    LIVE[change](pipeline)
    made = core.synthesize(x, CATS).images
    assert core.inversions == 4
    # the image comes back only if it was inverted with what it was generated with
    decoded = core.model.decode(core.model.encode(x))
    torch.testing.assert_close(made, decoded, atol=1e-3, rtol=0)


def test_another_text_encoder_is_another_inversion_and_an_equal_scheduler_is_not(
    sd_pipeline, tmp_path
):
    pipeline = copy.deepcopy(sd_pipeline)
    for change, computed in ((lambda: None, 2), (lambda: scheduler(pipeline, DDIMParallelScheduler),
                             0), (lambda: scale(pipeline.text_encoder), 2)):
        change()
        core = retrace(copy.deepcopy(pipeline), tmp_path)
        core.synthesize(images(core.model), CATS)
        assert core.inversions == computed


def test_memory_that_runs_out_halves_the_batch_and_is_freed(pixel, monkeypatch, caplog):
    """It runs out after the first batch; the record says which images had smaller ones."""
    held, free_when_cleared, predict, decode, tight = [], [], pixel.predict, pixel.decode, []

    def limited(x_t, t, condition):
        held.append(weakref.ref(x_t))
        if tight and len(x_t) > 2:
            raise torch.OutOfMemoryError("simulated")
        return predict(x_t, t, condition)

    monkeypatch.setattr(pixel, "predict", limited)
    monkeypatch.setattr(pixel, "decode", lambda latents: tight.append(1) or decode(latents))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache",
                        lambda: free_when_cleared.append(held[-1]() is None))
    x = images(pixel, 16)
    made = make(pixel, batch_size=8, noise_scale=0.0).synthesize(x, [*map(Request, range(16))])
    torch.testing.assert_close(made.images, x, atol=1e-4, rtol=0)
    assert made.batch_sizes == [8] * 8 + [2] * 8 and "batch_size=2" in caplog.text
    assert free_when_cleared == [True, True]


def test_memory_that_is_never_enough_is_an_error(pixel, monkeypatch):
    def never(*args):
        raise torch.OutOfMemoryError("simulated")

    monkeypatch.setattr(pixel, "predict", never)
    with pytest.raises(GenerationError, match="memory ran out at batch_size 1"):
        make(pixel).invert(images(pixel))


def test_when_most_images_come_out_broken_it_is_an_error(pixel):
    core = make(pixel)
    trajectories = core.invert(images(pixel))
    pixel.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(GenerationError, match=r"NaN or infinite pixels in 2 of 2 images"):
        core.generate(trajectories)
    with pytest.raises(GenerationError, match="8 of 8 images of tiny came out broken or"):
        core.synthesize(images(pixel, 8), [Request(i) for i in range(8)])


def test_when_some_images_come_out_broken_it_warns_once(pixel, monkeypatch):
    monkeypatch.setattr("dreamda_aug.generation.sampler.guard",
                        lambda made, *rest: ["replaced", *[""] * (len(made) - 1)])
    core, x, requests = make(pixel), images(pixel), [Request(0)] * 10
    with pytest.warns(UserWarning, match="1 of 10 images of tiny came out broken"):
        core.synthesize(x, requests)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        core.synthesize(x, requests)
    assert core.watch.events == {"replaced": 2}


def test_nothing_is_made_of_nothing_and_images_of_another_size_are_refused(pixel):
    nothing = make(pixel).synthesize(images(pixel), [])
    assert nothing.images.shape == (0, 1, 16, 16) and nothing.events == nothing.batch_sizes == []
    with pytest.raises(ValueError, match=r"images must have shape \(B, 1, 16, 16\)"):
        make(pixel).synthesize(torch.rand(1, 3, 16, 16), [Request(0)])


def test_threads_that_share_a_model_make_what_each_makes_alone(text):
    """Their settings differ in what the hook is set to."""
    samplers = [make(text, noise_scale=scale, update_rule=rule, batch_size=1)
                for scale, rule in ((1.0, "asymmetric"), (8.0, "symmetric"))]
    x, requests = images(text, 4), [Request(i, "a cat") for i in range(4)]
    alone = [each.synthesize(x, requests).images for each in samplers]
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(each.synthesize, x, requests) for each in samplers * 2]
    for one, other in zip(found, alone * 2, strict=True):
        assert torch.equal(one.result().images, other)


def test_the_compiled_unet_keeps_its_hook_and_compiles_once_per_shape(pixel):
    x, requests = images(pixel, 3), [Request(i, None, r) for i in range(3) for r in range(2)]
    plain = make(pixel, steps=4).synthesize(x, requests).images
    torch._dynamo.reset()
    # inductor's C++ compiler takes minutes here; what it would compile is captured all the same
    core = make(pixel, steps=4, compile={"backend": "eager"}, batch_size=4)
    torch.testing.assert_close(core.synthesize(x, requests).images, plain, atol=2e-4, rtol=0)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    core.synthesize(x[:1], [Request(0)])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_static_shapes_pad_batches_and_warn_once_where_that_is_mostly_waste(pixel):
    core, full = (make(pixel, steps=2, batch_size=4, static_shapes=True) for _ in range(2))
    with pytest.warns(UserWarning, match="batch_size=4, but an average call asks") as caught:
        for epoch in range(10):
            core.synthesize(images(pixel, 1), [Request(0, epoch=epoch)])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for epoch in range(10):
            full.synthesize(images(pixel, 1), [Request(0, None, r, epoch) for r in range(3)])


def test_a_training_loops_autocast_does_not_reach_the_model(pixel):
    x = images(pixel, 2)
    wanted = [Request(0), Request(1)]
    plain = make(pixel).synthesize(x, wanted).images
    with torch.autocast("cpu", torch.bfloat16):
        inside = make(pixel).synthesize(x, wanted).images
    assert inside.dtype == torch.float32 and torch.equal(inside, plain)


@pytest.mark.parametrize("kind", ["text", "zero terminal SNR"])
def test_rows_are_those_that_the_hook_counts(kind, text):
    """Every solver, rule, inversion and kind of guidance, with and without replay and noise."""
    model, condition = text, "a cat"
    if kind != "text":
        pipeline = pixel_pipeline(num_classes=3)
        pipeline.scheduler = DDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False)
        model, condition = UNetModel(pipeline, null_class=None), 1
    requests = [Request(i, condition, r) for i in range(2) for r in range(2)]
    for solver, rule, inversion, replay, noise_scale, interval in (
        ("ddim", "asymmetric", CycleDiffusion(), 1.0, 1.0, (0.0, 1.0)),
        ("ddim", "symmetric", DDIMInversion(), 0.5, 0.0, (0.3, 0.7)),
        ("dpmsolver++", "asymmetric", DDIMInversion(exact=False), 1.0, 1.0, (0.3, 0.7)),
        ("dpmsolver++", "symmetric", CycleDiffusion(), 0.0, 1.0, (0.0, 0.0)),
        ("heun", "asymmetric", CycleDiffusion(), 0.5, 1.0, (0.3, 0.7)),
        ("heun", "symmetric", DDIMInversion(), 1.0, 0.0, (0.0, 1.0)),
    ):
        run = make(model, steps=4, strength=1.0, solver=solver, update_rule=rule, eta=0.0,
                   inversion=inversion, replay=replay, noise_scale=noise_scale,
                   timestep_spacing="uniform", guidance_scale=3.0, guidance_interval=interval)
        before = model.hook.encoder_rows + model.hook.decoder_rows
        assert not any(run.synthesize(images(model), requests).events)
        counted = model.hook.encoder_rows + model.hook.decoder_rows - before
        assert -(-counted // 2) == run.rows(inversions=2, samples=4), run.settings.summary()
