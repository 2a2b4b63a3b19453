"""Every kind of U-Net model: saved by diffusers, opened again, inverted and perturbed."""

import copy

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LDMPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from pipelines import pixel_pipeline, spy_on, text_encoder_and_tokenizer, tiny_text_unet

from benchmarks.common.plain import plain_rows
from dreamda_aug import LatentCache, load_model
from dreamda_aug.errors import ModelError
from dreamda_aug.generation.tensors import Request, TensorSynthesizer

transformers = pytest.importorskip("transformers")
LEGACY = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 8), in_channels=3, out_channels=3, latent_channels=4,
        norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, force_upcast=True,
    ).eval()


def text_unet(**changes) -> UNet2DConditionModel:
    torch.manual_seed(0)
    config = {k: v for k, v in tiny_text_unet().config.items() if not k.startswith("_")}
    return UNet2DConditionModel(**{**config, **changes}).eval()


def scheduler(**changes) -> DDIMScheduler:
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                         clip_sample=False, set_alpha_to_one=False, steps_offset=1, **changes)


def sd_1(folder, **changes):
    encoder, tokenizer = text_encoder_and_tokenizer(folder)
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=encoder, tokenizer=tokenizer, unet=text_unet(),
        scheduler=scheduler(**changes), **LEGACY)


def sd_2(folder):
    return sd_1(folder, prediction_type="v_prediction", rescale_betas_zero_snr=True)


def sd_turbo(folder):
    pipeline = sd_2(folder)
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(
        scheduler().config, timestep_spacing="trailing")
    return pipeline


def without_mid_block(folder):
    """As BK-SDM Small and Tiny, and SSD-1B."""
    pipeline = sd_1(folder)
    pipeline.register_modules(unet=text_unet(mid_block_type=None))
    return pipeline


def sdxl(folder):
    encoder, tokenizer = text_encoder_and_tokenizer(folder)
    torch.manual_seed(1)
    config = transformers.CLIPTextConfig(**{**encoder.config.to_dict(), "projection_dim": 16})
    second = transformers.CLIPTextModelWithProjection(config).eval()
    unet = text_unet(cross_attention_dim=32, addition_embed_type="text_time",
                     addition_time_embed_dim=4, projection_class_embeddings_input_dim=16 + 6 * 4)
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=encoder, text_encoder_2=second, tokenizer=tokenizer,
        tokenizer_2=tokenizer, unet=unet, scheduler=scheduler())


def lcm(folder):
    encoder, tokenizer = text_encoder_and_tokenizer(folder)
    return LatentConsistencyModelPipeline(
        vae=vae(), text_encoder=encoder, tokenizer=tokenizer,
        unet=text_unet(time_cond_proj_dim=8),
        scheduler=LCMScheduler.from_config(scheduler().config), **LEGACY)


def latent_unconditional(folder):
    torch.manual_seed(0)
    vqvae = VQModel(block_out_channels=(8, 8), latent_channels=3, norm_num_groups=4,
                    down_block_types=("DownEncoderBlock2D",) * 2,
                    up_block_types=("UpDecoderBlock2D",) * 2).eval()
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8).eval()
    return LDMPipeline(vqvae, unet, scheduler())


class LatentClassPipeline(DiffusionPipeline):
    """A latent U-Net with class labels, as one would train it oneself."""

    def __init__(self, vae, unet, scheduler):
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)


def latent_class_conditional(folder):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
        num_class_embeds=5).eval()
    return LatentClassPipeline(vae(), unet, scheduler())


def pixels(folder):
    return pixel_pipeline(channels=3)


def pixels_class_conditional(folder):
    return pixel_pipeline(num_classes=5, channels=3)


SAVED = [sd_1, sd_2, sd_turbo, without_mid_block, sdxl, lcm, latent_unconditional, pixels]
KINDS = [*SAVED, latent_class_conditional, pixels_class_conditional]


@pytest.fixture(scope="module", params=KINDS, ids=lambda make: make.__name__)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    pipeline = request.param(folder)
    if request.param in SAVED:
        pipeline.save_pretrained(folder / "model")
        return load_model(folder / "model", device="cpu")
    return load_model(pipeline, null_class=4)


def told(model):
    return {"text": "a cat", "class": 2, "none": None}[model.condition_kind]


def test_zero_noise_and_equal_conditions_reproduce_the_latents(model, monkeypatch):
    monkeypatch.setattr(model, "decode", lambda latents: latents)
    x = torch.rand(2, 3, 16, 16)
    generator = TensorSynthesizer(model, "paper", steps=5, noise_scale=0.0, guidance_scale=3.0)
    made = generator.synthesize(x, [Request(0), Request(1)]).images
    assert (made - model.encode(x)).abs().max() <= 1e-4


X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def make(model, rule="asymmetric", batch_size=3, static_shapes=False, cache=None):
    """Five images: replicas of two seed images with two conditions, and one without noise mates."""
    generator = TensorSynthesizer(model, "paper", steps=4, noise_scale=2.0, guidance_scale=3.0,
                                  update_rule=rule, batch_size=batch_size, cache=cache)
    generator.static_shapes = static_shapes
    requests = [Request(0, told(model), 0), Request(0, told(model), 1), Request(0, None, 2),
                Request(1, told(model), 0), Request(1, told(model), 1)]
    made = generator.synthesize(X, requests).images
    assert not generator.watch.events
    return made


@pytest.fixture(scope="module", params=["asymmetric", "symmetric"])
def plain(request, model):
    """The rule, and what it makes one image at a time without branching."""
    return request.param, make(plain_rows(model), request.param, batch_size=1)


def test_noise_moves_the_images(plain):
    made = plain[1]
    assert (made[0] - made[1]).abs().max() > 1e-3 and (made[3] - X[1]).abs().max() > 1e-3


def agree(model, made, plain):
    """Rounding only: float32 sums in another order, four steps long."""
    # a VQ decoder may round to another code, which is a jump, if a small one
    quantised = isinstance(getattr(model, "vae", None), VQModel)
    torch.testing.assert_close(made, plain, atol=1e-2 if quantised else 2e-4, rtol=0)


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.__name__.startswith("pixels")])
def test_every_latent_kind_runs_in_low_memory(kind, tmp_path):
    pipeline = kind(tmp_path)
    plain = make(load_model(copy.deepcopy(pipeline), null_class=4))
    model = load_model(pipeline, null_class=4, low_memory=True)
    agree(model, make(model), plain)


@pytest.mark.parametrize("path", [
    dict(batch_size=1), dict(batch_size=5), dict(batch_size=3, static_shapes=True),
], ids=str)
def test_branched_and_batched_paths_agree_with_the_plain_one(model, plain, path):
    rule, expected = plain
    agree(model, make(model, rule, **path), expected)


def test_channels_last_agrees_with_the_plain_path(model, plain):
    rule, expected = plain
    model.channels_last()
    try:
        agree(model, make(model, rule), expected)
    finally:
        model.unet.to(memory_format=torch.contiguous_format)


def test_the_compiled_unet_agrees_with_the_plain_path(model, tmp_path):
    cache = LatentCache(tmp_path)
    expected = make(plain_rows(model), batch_size=1, cache=cache)
    torch._dynamo.reset()
    # inductor takes minutes; what is captured is the same
    twin = model.compiled(backend="eager")
    # inversions are read from the cache: one graph less to capture
    agree(model, make(twin, static_shapes=True, cache=cache), expected)


def test_cached_and_uncached_generation_are_equal(model, plain, tmp_path):
    rule, cache = plain[0], LatentCache(tmp_path)
    uncached = make(model, rule)
    assert torch.equal(make(model, rule, cache=cache), uncached)
    before = model.hook.encoder_rows
    assert torch.equal(make(model, rule, cache=cache), uncached)
    cached_rows = model.hook.encoder_rows - before
    make(model, rule)
    assert cached_rows < model.hook.encoder_rows - before - cached_rows  # it was read


def test_sdxl_is_told_what_its_own_pipeline_tells_it(tmp_path):
    pipeline = sdxl(tmp_path)
    model = load_model(pipeline)
    seen = spy_on(pipeline.unet)
    pipeline("a cat", num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    ours = model.embed(["a cat"])
    assert torch.equal(ours["encoder_hidden_states"], seen["encoder_hidden_states"])
    for name in ("text_embeds", "time_ids"):
        assert torch.equal(ours[name], seen["added_cond_kwargs"][name])
    assert not model.embed([None])["text_embeds"].any()  # SDXL's unconditional branch is zeros


def test_lcm_takes_its_guidance_as_an_input_and_is_not_guided_again(tmp_path):
    model = load_model(lcm(tmp_path))
    assert not model.guidable
    assert model.embed(["a cat"])["timestep_cond"].shape == (1, 8)
    assert model.schedule(4, 1.0).timesteps.tolist() == [999, 749, 499, 249]
    generator = TensorSynthesizer(model, "paper", steps=4, update_rule="symmetric")
    generator.synthesize(torch.rand(1, 3, 16, 16), [Request(0, "a cat")])
    assert model.hook.encoder_rows == 3 + 3  # inversion and one row per step


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 0.12), (torch.float16, 0.03)])
def test_half_precision_stays_close_to_float32(tmp_path, dtype, tolerance):
    sd_2(tmp_path).save_pretrained(tmp_path / "model")
    x, request = torch.rand(2, 3, 16, 16), [Request(0, "a cat"), Request(1, "a cat")]
    made = [
        TensorSynthesizer(load_model(tmp_path / "model", device="cpu", dtype=d), "paper",
                          steps=4, guidance_scale=1.0, noise_scale=0.5
                          ).synthesize(x, request).images
        for d in (torch.float32, dtype)
    ]
    assert made[1].dtype == torch.float32
    assert (made[0] - made[1]).abs().mean() < tolerance


def test_a_vae_that_overflows_in_half_precision_runs_in_float32(tmp_path):
    sdxl(tmp_path).save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu", dtype=torch.float16)
    assert (model.unet.dtype, model.vae.dtype) == (torch.float16, torch.float32)
    assert model.pipeline.vae is model.vae
    lent = sdxl(tmp_path).to(torch.float16)
    assert load_model(lent).vae.dtype == torch.float32 and lent.vae.dtype == torch.float16


def test_lora_weights_and_their_strength_change_images_and_fingerprint(sd_pipeline, tmp_path):
    peft = pytest.importorskip("peft")
    pipeline = StableDiffusionPipeline(**{**sd_pipeline.components, "unet": text_unet()},
                                       requires_safety_checker=False)
    plain = load_model(pipeline).fingerprint
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipeline.unet.add_adapter(config)
    state = peft.get_peft_model_state_dict(pipeline.unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=state)
    fresh = StableDiffusionPipeline(**{**sd_pipeline.components, "unet": text_unet()},
                                    requires_safety_checker=False)
    fresh.load_lora_weights(tmp_path, adapter_name="style")
    full = load_model(fresh).fingerprint
    fresh.set_adapters(["style"], [0.3])
    weak = load_model(fresh)
    assert len({plain, full, weak.fingerprint}) == 3
    made = TensorSynthesizer(weak, "paper", steps=4).synthesize(
        torch.rand(1, 3, 16, 16), [Request(0, "a")]).images
    assert made.isfinite().all()


def test_the_variant_is_passed_on(tmp_path):
    sd_2(tmp_path).to(torch.float16).save_pretrained(tmp_path / "model", variant="fp16")
    model = load_model(tmp_path / "model", device="cpu", variant="fp16")
    assert model.image_size == (16, 16)
    with pytest.raises(ModelError):
        load_model(tmp_path / "model", device="cpu")


def test_a_single_file_goes_through_diffusers_loader(tmp_path, sd_pipeline, monkeypatch):
    from safetensors.torch import save_file

    seen = []

    def loader(kind):
        return lambda path, **options: seen.append((kind, path, options)) or sd_pipeline

    for kind in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        monkeypatch.setattr(f"diffusers.{kind}.from_single_file", loader(kind))
    save_file({"model.diffusion_model.x": torch.zeros(1)}, tmp_path / "sd.safetensors")
    save_file({"conditioner.embedders.1.x": torch.zeros(1)}, tmp_path / "xl.safetensors")
    load_model(tmp_path / "sd.safetensors", device="cpu", config=tmp_path)
    load_model(tmp_path / "xl.safetensors", device="cpu")
    assert [kind for kind, _, _ in seen] == ["StableDiffusionPipeline",
                                             "StableDiffusionXLPipeline"]
    assert seen[0][2]["config"] == str(tmp_path)
    (tmp_path / "model.ckpt").write_bytes(b"a pickle")
    with pytest.raises(ModelError, match=r"only \.safetensors files are opened"):
        load_model(tmp_path / "model.ckpt", device="cpu")


def test_dropped_text_encoders_leave_embedded_prompts_behind(tmp_path):
    model = load_model(sdxl(tmp_path))
    before = model.embed(["a cat"])
    model.conditioning.drop_encoders()
    assert model.pipeline.text_encoder is model.pipeline.text_encoder_2 is None
    assert torch.equal(model.embed(["a cat"])["text_embeds"], before["text_embeds"])
    with pytest.raises(ModelError, match="'a dog' was not embedded before"):
        model.embed(["a dog"])
