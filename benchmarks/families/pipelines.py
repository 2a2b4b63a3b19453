"""A tiny random pipeline of each family, and of some schedulers, in diffusers' own classes."""

from typing import Any

import diffusers
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from benchmarks.families import parts

SIDE = 16  # of images, in pixels
_HEADS = dict(num_attention_heads=2, attention_head_dim=8)
_LATENTS = dict(in_channels=4, sample_size=8)


def sd() -> Any:
    return _sd(_ddim(steps_offset=1))


def sd_euler() -> Any:
    return _sd(_euler())


def sd_2() -> Any:
    """As SD 2.1 with a zero terminal signal-to-noise ratio."""
    return _sd(_ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True,
                     timestep_spacing="trailing", steps_offset=1))


def _sd(scheduler: Any) -> Any:
    return diffusers.StableDiffusionPipeline(
        parts.vae(shift_factor=None), parts.clip(pooled=False), parts.tokenizer(), _unet(),
        scheduler, None, None, requires_safety_checker=False)


def sdxl() -> Any:
    return _sdxl(_ddim())


def sdxl_euler() -> Any:
    return _sdxl(_euler())


def _sdxl(scheduler: Any) -> Any:
    unet = _unet(cross_attention_dim=2 * parts.WIDTH, addition_embed_type="text_time",
                 addition_time_embed_dim=4, projection_class_embeddings_input_dim=parts.WIDTH + 24)
    return diffusers.StableDiffusionXLPipeline(
        parts.vae(shift_factor=None), parts.clip(), parts.clip(), parts.tokenizer(),
        parts.tokenizer(), unet, scheduler, add_watermarker=False)


def _unet(**changes: Any) -> Any:
    return parts.seeded(diffusers.UNet2DConditionModel, **_LATENTS | dict(
        out_channels=4, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        cross_attention_dim=parts.WIDTH, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")) | changes)


def dit() -> Any:
    transformer = parts.seeded(
        diffusers.DiTTransformer2DModel, **_HEADS, **_LATENTS, out_channels=8, num_layers=4,
        patch_size=2, norm_num_groups=4, num_embeds_ada_norm=1000)
    return diffusers.DiTPipeline(transformer, parts.vae(shift_factor=None), _ddim())


def sd3() -> Any:
    return _sd3(**_HEADS, **_LATENTS, num_layers=4, caption_projection_dim=16, pos_embed_max_size=8)


def wide_sd3() -> Any:
    """12 blocks of 384 channels, 256 image tokens: small, but with something to do."""
    return _sd3(num_attention_heads=6, attention_head_dim=64, in_channels=4, sample_size=32,
                num_layers=12, caption_projection_dim=384, pos_embed_max_size=32)


def _sd3(**shape: Any) -> Any:
    transformer = parts.seeded(
        diffusers.SD3Transformer2DModel, **shape, out_channels=4, patch_size=2,
        joint_attention_dim=2 * parts.WIDTH, pooled_projection_dim=2 * parts.WIDTH,
        qk_norm="rms_norm", dual_attention_layers=(0, 1))
    return diffusers.StableDiffusion3Pipeline(
        transformer, parts.flow(shift=3.0), parts.vae(), parts.clip(), parts.tokenizer(),
        parts.clip(), parts.tokenizer(), parts.t5(2 * parts.WIDTH), parts.tokenizer(512))


def flux() -> Any:
    transformer = parts.seeded(
        diffusers.FluxTransformer2DModel, **_HEADS, in_channels=16, num_layers=2,
        num_single_layers=2, joint_attention_dim=parts.WIDTH, pooled_projection_dim=parts.WIDTH,
        guidance_embeds=True, axes_dims_rope=(2, 2, 4))
    return diffusers.FluxPipeline(
        _shifting(), parts.vae(), parts.clip(pooled=False), parts.tokenizer(), parts.t5(),
        parts.tokenizer(512), transformer)


def flux2() -> Any:
    transformer = parts.seeded(
        diffusers.Flux2Transformer2DModel, **_HEADS, in_channels=16, num_layers=2,
        num_single_layers=2, joint_attention_dim=3 * parts.WIDTH, guidance_embeds=False,
        timestep_guidance_channels=16, axes_dims_rope=(2, 2, 2, 2))
    return diffusers.Flux2KleinPipeline(
        _shifting(), parts.flux2_vae(), parts.qwen3(28), parts.tokenizer(512), transformer)


def qwen_image() -> Any:
    transformer = parts.seeded(
        diffusers.QwenImageTransformer2DModel, **_HEADS, in_channels=16, out_channels=4,
        num_layers=4, joint_attention_dim=parts.WIDTH, axes_dims_rope=(2, 2, 4))
    return diffusers.QwenImagePipeline(
        _shifting(shift_terminal=0.02), parts.qwen_vae(), parts.qwen3(), parts.tokenizer(1024),
        transformer)


def z_image() -> Any:
    transformer = parts.seeded(
        diffusers.ZImageTransformer2DModel, in_channels=4, dim=16, n_layers=4, n_refiner_layers=1,
        n_heads=2, n_kv_heads=2, cap_feat_dim=parts.WIDTH, axes_dims=[2, 2, 4],
        axes_lens=[1024, 64, 64])
    return diffusers.ZImagePipeline(
        parts.flow(shift=3.0), parts.vae(), parts.qwen3(), parts.tokenizer(512), transformer)


def sana() -> Any:
    transformer = parts.seeded(
        diffusers.SanaTransformer2DModel, **_HEADS, **_LATENTS, out_channels=4, num_layers=4,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
        caption_channels=parts.WIDTH, timestep_scale=1.0)
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, solver_order=1)
    return diffusers.SanaPipeline(
        parts.tokenizer(300), parts.gemma(), parts.deep_compression_vae(), transformer, scheduler)


def pixart() -> Any:
    transformer = parts.seeded(
        diffusers.PixArtTransformer2DModel, **_HEADS, **_LATENTS, out_channels=8, num_layers=4,
        patch_size=2, cross_attention_dim=16, caption_channels=parts.WIDTH, norm_num_groups=4)
    return diffusers.PixArtSigmaPipeline(
        parts.tokenizer(300), parts.t5(), parts.vae(shift_factor=None), transformer, _ddim())


def hunyuan_dit() -> Any:
    transformer = parts.seeded(
        diffusers.HunyuanDiT2DModel, **_HEADS, **_LATENTS, hidden_size=16, num_layers=6,
        patch_size=2, cross_attention_dim=parts.WIDTH, cross_attention_dim_t5=parts.WIDTH,
        pooled_projection_dim=16, text_len=77, text_len_t5=256)
    return diffusers.HunyuanDiTPipeline(
        parts.vae(shift_factor=None), parts.bert(), parts.tokenizer(), transformer,
        _ddim(prediction_type="v_prediction"), None, None, False, parts.t5(), parts.tokenizer(256))


def lumina2() -> Any:
    transformer = parts.seeded(
        diffusers.Lumina2Transformer2DModel, **_LATENTS, hidden_size=16, num_layers=4,
        num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1, multiple_of=8,
        axes_dim_rope=(4, 2, 2), axes_lens=(300, 16, 16), cap_feat_dim=parts.WIDTH)
    return diffusers.Lumina2Pipeline(
        transformer, parts.flow(shift=6.0), parts.vae(), parts.gemma(), parts.tokenizer(256))


def _shifting(**options: Any) -> Any:
    return parts.flow(use_dynamic_shifting=True, **options)


def _ddim(**options: Any) -> Any:
    # less noise than usual: where hardly any signal is left, a random model's images explode
    return DDIMScheduler(clip_sample=False, set_alpha_to_one=True, beta_end=0.002, **options)


def _euler() -> Any:
    return EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, beta_end=0.002)


PIPELINES = {make.__name__: make for make in (
    sd, sd_euler, sd_2, sdxl, sdxl_euler, sd3, flux, flux2, qwen_image, z_image, sana, pixart,
    hunyuan_dit, lumina2, dit)}
