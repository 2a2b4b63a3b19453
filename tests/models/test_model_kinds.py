"""Every kind of U-Net model: saved by diffusers, opened again, inverted and perturbed."""

import copy
from functools import partial

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, VQModel
from pipelines import pixel_pipeline, sampler, spy_on, tiny_unet

pytest.importorskip("transformers")

from benchmarks.common.plain import plain_rows
from benchmarks.families import checks, parts, pipelines
from dreamda_aug import LatentCache, load_model
from dreamda_aug.errors import ModelError
from dreamda_aug.generation.sampler import Request


def changed(unet, **changes):
    """A U-Net of another shape, with new weights."""
    return parts.seeded(partial(unet.from_config, unet.config), **changes)


def sd(kind="StableDiffusionPipeline", scheduler="DDIMScheduler", unet=None, **changes):
    """Stable Diffusion with another U-Net or scheduler."""
    pipeline = pipelines.sd()
    scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **changes)
    return getattr(diffusers, kind)(**{
        **pipeline.components, "unet": changed(pipeline.unet, **unet or {}),
        "scheduler": scheduler}, requires_safety_checker=False)


def sd_turbo():
    return sd(scheduler="EulerAncestralDiscreteScheduler", timestep_spacing="trailing")


def without_mid_block():
    """As BK-SDM Small and Tiny, and SSD-1B."""
    return sd(unet={"mid_block_type": None})


def lcm():
    return sd("LatentConsistencyModelPipeline", "LCMScheduler", {"time_cond_proj_dim": 8})


def latent_unconditional():
    torch.manual_seed(0)
    vqvae = VQModel(block_out_channels=(8, 8), latent_channels=3, norm_num_groups=4,
                    down_block_types=("DownEncoderBlock2D",) * 2,
                    up_block_types=("UpDecoderBlock2D",) * 2).eval()
    return diffusers.LDMPipeline(vqvae, tiny_unet(3, sample_size=8), pipelines.sd().scheduler)


class LatentClassPipeline(DiffusionPipeline):
    """A latent U-Net with class labels, as one would train it oneself."""

    def __init__(self, vae, unet, scheduler):
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)


def latent_class_conditional():
    unet = tiny_unet(4, num_classes=5, sample_size=8)
    return LatentClassPipeline(parts.vae(shift_factor=None), unet, pipelines.sd().scheduler)


def pixels():
    return pixel_pipeline(channels=3)


def pixels_class_conditional():
    return pixel_pipeline(num_classes=5, channels=3)


SAVED = [pipelines.sd, pipelines.sd_2, sd_turbo, without_mid_block, pipelines.sdxl, lcm,
         latent_unconditional, pixels]
KINDS = [*SAVED, latent_class_conditional, pixels_class_conditional]


@pytest.fixture(scope="module", params=KINDS, ids=lambda make: make.__name__)
def model(request, tmp_path_factory):
    pipeline = request.param()
    if request.param in SAVED:
        folder = tmp_path_factory.mktemp("model")
        pipeline.save_pretrained(folder)
        return load_model(folder, device="cpu")
    return load_model(pipeline, null_class=4)


X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def make(model, rule="asymmetric", batch_size=3, static_shapes=False, cache=None):
    """Five images: replicas of two seed images with two conditions, and one without noise mates."""
    told = {"text": "a cat", "class": 2, "none": None}[model.condition_kind]
    generator = sampler(model, steps=4, noise_scale=2.0, guidance_scale=3.0, update_rule=rule,
                        batch_size=batch_size, cache=cache, static_shapes=static_shapes)
    requests = [Request(0, told, 0), Request(0, told, 1), Request(0, None, 2),
                Request(1, told, 0), Request(1, told, 1)]
    made = generator.synthesize(X, requests).images
    assert not generator.watch.events
    return made


@pytest.fixture(scope="module", params=["asymmetric", "symmetric"])
def plain(request, model):
    """The rule, and what it makes one image at a time without branching."""
    return request.param, make(plain_rows(model), request.param, batch_size=1)


def agree(model, made, plain):
    """Rounding only: float32 sums in another order, four steps long."""
    # a VQ decoder may round to another code, which is a jump, if a small one
    quantised = isinstance(getattr(model, "vae", None), VQModel)
    torch.testing.assert_close(made, plain, atol=1e-2 if quantised else 2e-4, rtol=0)


@pytest.mark.parametrize("layout, path", [
    (torch.contiguous_format, dict(batch_size=5)), (torch.channels_last, {}),
    (torch.contiguous_format, dict(batch_size=3, static_shapes=True))], ids=str)
def test_branched_and_batched_paths_agree_with_the_plain_one(model, plain, layout, path):
    rule, expected = plain
    if layout is torch.channels_last:
        model.channels_last()
    agree(model, make(model, rule, **path), expected)
    model.unet.to(memory_format=torch.contiguous_format)
    assert (expected[0] - expected[1]).abs().max() > 1e-3  # noise moves images
    assert (expected[3] - X[1]).abs().max() > 1e-3


def test_cached_generation_agrees_with_the_plain_one(model, tmp_path):
    cache = LatentCache(tmp_path)
    expected = make(plain_rows(model), batch_size=1, cache=cache)
    before = model.hook.encoder_rows
    agree(model, make(model, cache=cache), expected)
    cached_rows = model.hook.encoder_rows - before
    agree(model, make(model), expected)
    assert cached_rows < model.hook.encoder_rows - before - cached_rows  # it was read


@pytest.mark.parametrize("kind", [without_mid_block, latent_class_conditional])
def test_compiled_generation_agrees_with_the_plain_one(kind):
    model = load_model(kind(), null_class=4)
    torch._dynamo.reset()
    # inductor takes minutes; what is captured is the same
    made = make(model.compiled(backend="eager"), static_shapes=True)
    agree(model, made, make(plain_rows(model), batch_size=1))


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.__name__.startswith("pixels")])
def test_every_latent_kind_runs_in_low_memory(kind):
    model = load_model(kind(), null_class=4, low_memory=True)
    agree(model, make(model), make(load_model(kind(), null_class=4)))


def test_sdxl_is_told_what_its_own_pipeline_tells_it():
    pipeline = pipelines.sdxl()
    model, seen = load_model(pipeline), spy_on(pipeline.unet)
    pipeline("a cat", num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    ours = model.embed(["a cat"])
    assert torch.equal(ours["encoder_hidden_states"], seen["encoder_hidden_states"])
    for name in ("text_embeds", "time_ids"):
        assert torch.equal(ours[name], seen["added_cond_kwargs"][name])
    assert not model.embed([None])["text_embeds"].any()  # SDXL's unconditional branch is zeros
    model.embed_only(["a cat"])
    assert pipeline.text_encoder is pipeline.text_encoder_2 is None


def test_the_refiner_is_told_the_aesthetic_scores_of_its_own_pipeline():
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline(
        parts.vae(shift_factor=None), None, parts.clip(), None, parts.tokenizer(),
        changed(pipelines.sdxl().unet, cross_attention_dim=8,
                projection_class_embeddings_input_dim=28),
        DDIMScheduler(clip_sample=False), requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False)
    seen = spy_on(pipeline.unet)
    pipeline("a cat", image=checks.images(1), strength=0.5, num_inference_steps=2,
             guidance_scale=4.0, output_type="latent")
    model = load_model(pipeline)
    ours = model.embed([None, "a cat"])
    assert torch.equal(ours["time_ids"], seen["added_cond_kwargs"]["time_ids"])
    assert ours["time_ids"][:, 4].tolist() == [2.5, 6.0]
    torch.testing.assert_close(ours["encoder_hidden_states"], seen["encoder_hidden_states"])
    assert checks.replay_error(model, 4) <= 1e-4


def test_playground_scales_its_latents_and_steps_as_its_own_pipeline():
    pipeline = pipelines.sdxl()
    pipeline.register_modules(scheduler=diffusers.EDMEulerScheduler(sigma_data=0.5), vae=parts.vae(
        shift_factor=None, latents_mean=[-1.6, 1.1, 0.3, -0.2], latents_std=[8.4, 6.0, 5.6, 5.3]))
    model = load_model(pipeline)
    dials = checks.settings(replay=0.0, noise_scale=0.0, eta=0.0, guidance_scale=3.0)
    made = model.decode(checks.latents(model, dials, ["a cat"], [5]))
    schedule = model.schedule(checks.STEPS, 1.0, "scheduler")
    noise = checks.seeded_normal(torch.tensor([5]), 0, checks.SOURCE, (4, 8, 8))
    start = schedule.add_noise(model.encode(checks.images(7)[:1]), noise, 0)
    own = pipeline("a cat", latents=start / pipeline.scheduler.init_noise_sigma, height=16,
                   width=16, num_inference_steps=checks.STEPS, guidance_scale=3.0,
                   output_type="pt").images
    assert ((own > 0) & (own < 1)).float().mean() > 0.5
    torch.testing.assert_close(made, own, atol=1e-4, rtol=0)


def test_lcm_takes_its_guidance_as_an_input_and_is_not_guided_again():
    model = load_model(lcm())
    assert not model.guidable
    assert model.embed(["a cat"])["timestep_cond"].shape == (1, 8)
    generator = sampler(model, "paper", steps=4, update_rule="symmetric")
    generator.synthesize(torch.rand(1, 3, 16, 16), [Request(0, "a cat")])
    assert model.hook.encoder_rows == 3 + 3  # inversion and one row per step


def test_a_vae_that_overflows_in_half_precision_runs_in_float32(tmp_path):
    pipelines.sdxl().save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu", dtype=torch.float16)
    assert (model.unet.dtype, model.vae.dtype) == (torch.float16, torch.float32)
    assert model.pipeline.vae is model.vae
    lent = copy.deepcopy(pipelines.sdxl()).to(torch.float16)  # parts are shared
    assert load_model(lent).vae.dtype == torch.float32 and lent.vae.dtype == torch.float16


def test_a_single_file_goes_through_diffusers_loader(tmp_path, sd_pipeline, monkeypatch):
    from safetensors.torch import save_file

    seen = []
    for kind in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        monkeypatch.setattr(f"diffusers.{kind}.from_single_file", lambda path, kind=kind, **options:
                            seen.append((kind, options["config"])) or sd_pipeline)
    save_file({"model.diffusion_model.x": torch.zeros(1)}, tmp_path / "sd.safetensors")
    save_file({"conditioner.embedders.1.x": torch.zeros(1)}, tmp_path / "xl.safetensors")
    load_model(tmp_path / "sd.safetensors", device="cpu", config=tmp_path)
    load_model(tmp_path / "xl.safetensors", device="cpu")
    assert seen == [("StableDiffusionPipeline", str(tmp_path)), ("StableDiffusionXLPipeline", None)]
    (tmp_path / "model.ckpt").write_bytes(b"a pickle")
    with pytest.raises(ModelError, match=r"only \.safetensors files are opened"):
        load_model(tmp_path / "model.ckpt", device="cpu")
