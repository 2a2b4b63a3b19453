"""SDXL and Stable Diffusion 3 with random weights, and narrow ones of the same make."""

import hashlib
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn

# Numbers of the published configurations, and narrow ones for a CPU.
SDXL = {
    "sdxl": dict(unet=(320, 640, 1280), heads=(5, 10, 20), layers=(1, 2, 10), text=2048,
                 pooled=1280, time_ids=256, vae=(128, 256, 512, 512), side=128, groups=32),
    "tiny-sdxl": dict(unet=(16, 32, 64), heads=(1, 2, 4), layers=(1, 1, 2), text=32, pooled=16,
                      time_ids=8, vae=(8, 16, 32, 32), side=16, groups=8),
}
SD3 = {
    "sd3": dict(layers=24, heads=24, head_width=64, text=4096, pooled=2048, tokens=333, side=128,
                positions=192, vae=(128, 256, 512, 512), latents=16, groups=32),
    "tiny-sd3": dict(layers=4, heads=2, head_width=16, text=32, pooled=16, tokens=20, side=16,
                     positions=24, vae=(8, 16, 32, 32), latents=16, groups=8),
}


class _RandomSDXL(StableDiffusionXLPipeline):
    """Prompts become random embeddings, the same each time."""

    def encode_prompt(self, prompt: str, *options: Any, **named: Any) -> tuple[Any, ...]:
        unet, config = self.unet, self.unet.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return (drawn(prompt, (1, 77, config.cross_attention_dim), unet), None,
                drawn(prompt, (1, pooled), unet), None)


class _RandomSD3(StableDiffusion3Pipeline):
    """The same; `tokens` of them, as three text encoders together give them."""

    tokens = 333

    def encode_prompt(self, prompt: str, *options: Any, **named: Any) -> tuple[Any, ...]:
        config = self.transformer.config
        return (drawn(prompt, (1, self.tokens, config.joint_attention_dim), self.transformer),
                None, drawn(prompt, (1, config.pooled_projection_dim), self.transformer), None)


def drawn(prompt: str, shape: tuple[int, ...], model: Any) -> Tensor:
    """Random numbers that belong to a prompt, where a model lies and in its dtype."""
    rng_seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "big")
    values = torch.randn(shape, generator=torch.Generator().manual_seed(rng_seed))
    return values.to(model.device, model.dtype)


def sdxl_pipeline(
    unet, heads, layers, text, pooled, time_ids, vae, side, groups, device="cpu"
) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL with other widths.

    Args:
        unet: the U-Net's width at each level.
        heads: of its attention at each level.
        layers: transformer blocks at each level.
        text: width of the text embedding.
        pooled: of the pooled one.
        time_ids: of the embedding of each size.
        vae: the autoencoder's width at each level.
        side: of the latents; images are 8 times as wide.
        groups: of each group norm.
        device: where the weights are made; ``"meta"`` makes none.
    """
    with torch.device(device):
        pipeline = _RandomSDXL(
            _vae(vae, 4, side, groups, scaling_factor=0.13025), None, None, None, None,
            UNet2DConditionModel(
                sample_size=side, in_channels=4, out_channels=4, layers_per_block=2,
                block_out_channels=unet, norm_num_groups=groups, cross_attention_dim=text,
                attention_head_dim=heads,  # diffusers' name for their number
                transformer_layers_per_block=layers, use_linear_projection=True,
                addition_embed_type="text_time", addition_time_embed_dim=time_ids,
                projection_class_embeddings_input_dim=pooled + 6 * time_ids,
                down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
                up_block_types=(*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
            ),
            DDIMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                clip_sample=False, set_alpha_to_one=False, steps_offset=1,
            ),
            add_watermarker=False,
        )
    return _with_encoder(pipeline)


def sd3_pipeline(
    layers, heads, head_width, text, pooled, tokens, side, positions, vae, latents, groups,
    device="cpu",
) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 with other widths.

    Args:
        layers: transformer blocks.
        heads: of each attention.
        head_width: of each head.
        text: width of the text embedding.
        pooled: of the pooled one.
        tokens: of a prompt.
        side: of the latents; images are 8 times as wide.
        positions: how wide the grid of position embeddings is, in patches.
        vae: the autoencoder's width at each level.
        latents: channels of the latents.
        groups: of the autoencoder's group norms.
        device: where the weights are made; ``"meta"`` makes none.
    """
    with torch.device(device):
        pipeline = _RandomSD3(
            SD3Transformer2DModel(
                sample_size=side, patch_size=2, in_channels=latents, out_channels=latents,
                num_layers=layers, attention_head_dim=head_width, num_attention_heads=heads,
                joint_attention_dim=text, caption_projection_dim=heads * head_width,
                pooled_projection_dim=pooled, pos_embed_max_size=positions,
            ),
            FlowMatchEulerDiscreteScheduler(shift=3.0),
            _vae(vae, latents, side, groups, scaling_factor=1.5305, shift_factor=0.0609),
            None, None, None, None, None, None,
        )
    pipeline.tokens = tokens
    return _with_encoder(pipeline)


def _with_encoder(pipeline: Any) -> Any:
    # what has no text encoder has dropped it, and embeds no new prompts
    vars(pipeline)["text_encoder"] = nn.Identity()
    return pipeline


def _vae(widths, latents, side, groups, **scaling) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=latents, layers_per_block=2,
        block_out_channels=widths, norm_num_groups=groups, sample_size=8 * side,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        **scaling,
    )
