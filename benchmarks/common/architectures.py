"""Models with random weights: their speed and memory are those of trained ones."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.common.modern import SD3, SDXL, drawn, sd3_pipeline, sdxl_pipeline
from dreamda_aug import load_model
from dreamda_aug.models import DiffusionModel
from dreamda_aug.models.unet import UNetModel

# Widths, latent side, embedding, attention heads and group norm of Stable Diffusion 1.5, from its
# published configuration; the same four levels about twenty times narrower; and as narrow as goes.
ARCHITECTURES = {
    "sd15": dict(unet=(320, 640, 1280, 1280), vae=(128, 256, 512, 512), side=64, text=768, heads=8,
                 groups=32),
    "tiny-sd": dict(unet=(16, 32, 64, 64), vae=(8, 16, 32, 32), side=16, text=32, heads=2,
                    groups=8),
    "toy-sd": dict(unet=(4, 4, 8, 8), vae=(4, 4, 4, 4), side=8, text=8, heads=1, groups=2),
}


RANDOM = (*ARCHITECTURES, *SDXL, *SD3)


def build(
    arch: str, device: str, low_memory: bool = False, dtype: torch.dtype | None = None
) -> DiffusionModel:
    """A model: one of `RANDOM`, or whatever `load_model` takes.

    On CUDA it is float16 unless a dtype is given, and U-Nets are channels_last, as one would run
    them there.
    """
    on_cuda = device.startswith("cuda")
    if arch not in RANDOM:
        model = load_model(arch, device=device, low_memory=low_memory, dtype=dtype)
    else:
        torch.manual_seed(0)
        pipeline = made(arch, device)
        dtype = dtype or (torch.float16 if on_cuda else torch.float32)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                nn.Module.to(part, dtype)  # diffusers' own warns
        model = load_model(pipeline, low_memory=low_memory)
        model.name = arch
    if on_cuda and isinstance(model, UNetModel):
        model.channels_last()
    return model


def made(arch: str, device: str) -> DiffusionPipeline:
    """A pipeline of one of `RANDOM`; on ``"meta"`` it has no weights."""
    if arch in SDXL:
        return sdxl_pipeline(**SDXL[arch], device=device)
    if arch in SD3:
        return sd3_pipeline(**SD3[arch], device=device)
    return random_pipeline(**ARCHITECTURES[arch], device=device)


class RandomText(DiffusionPipeline):
    """A pipeline whose prompts become random embeddings, (1, 77, width), the same each time."""

    def __init__(self, vae, unet, scheduler):
        super().__init__()
        self.register_modules(vae=vae, unet=unet, scheduler=scheduler)
        self.text_encoder = nn.Identity()

    def encode_prompt(self, prompt: str, device, num_images_per_prompt: int, **options):
        return drawn(prompt, (1, 77, self.unet.config.cross_attention_dim), self.unet), None


def random_pipeline(unet, vae, side, text, heads, groups, device="cpu") -> RandomText:
    """Stable Diffusion 1.x with other widths.

    Args:
        unet: the U-Net's width at each level.
        vae: the same for the autoencoder.
        side: of the latents; images are 8 times as wide.
        text: width of the text embedding.
        heads: of each attention.
        groups: of each group norm.
        device: where the weights are made; ``"meta"`` makes none.
    """
    with torch.device(device):
        return RandomText(
            AutoencoderKL(
                in_channels=3, out_channels=3, latent_channels=4, layers_per_block=2,
                block_out_channels=vae, norm_num_groups=groups, sample_size=8 * side,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
            ),
            UNet2DConditionModel(
                sample_size=side, in_channels=4, out_channels=4, layers_per_block=2,
                block_out_channels=unet, norm_num_groups=groups, cross_attention_dim=text,
                attention_head_dim=heads,  # diffusers' name for their number, kept for old files
                down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
                up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
            ),
            DDIMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                clip_sample=False, set_alpha_to_one=False, steps_offset=1,
            ),
        )


def sample_images(model: DiffusionModel, count: int) -> Tensor:
    """Random seed images, (count, C, H, W) in [0, 1]."""
    shape = (count, model.channels, *model.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))
