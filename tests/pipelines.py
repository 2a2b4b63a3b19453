"""Tiny random pipelines of pixel models; others are in ``benchmarks.families``."""

import dataclasses

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel


def tiny_unet(channels: int = 1, num_classes: int | None = None, **changes) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**dict(
        sample_size=16, in_channels=channels, out_channels=channels, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=num_classes) | changes,
    ).eval()


def pixel_pipeline(
    prediction_type: str = "epsilon", num_classes: int | None = None, channels: int = 1
) -> DDPMPipeline:
    scheduler = DDPMScheduler(prediction_type=prediction_type, clip_sample=False)
    return DDPMPipeline(tiny_unet(channels, num_classes), scheduler)


def spy_on(model) -> dict:
    """What a model is called with from now on, by argument; a later call overwrites."""
    seen, forward = {}, model.forward

    def spy(sample, t, **inputs):
        seen.update(inputs)
        return forward(sample, t, **inputs)

    model.forward = spy
    return seen


def sampler(model, preset="paper", *, static_shapes=False, **options):
    """What a synthesizer works on tensors with; without a cache unless one is given."""
    from dreamda_aug import Synthesizer

    made = Synthesizer(model, preset, **{"cache": None, **options}).sampler
    return dataclasses.replace(made, static_shapes=static_shapes or made.static_shapes)


def images(model, count=2) -> torch.Tensor:
    """Noise in the model's size, the same each time."""
    torch.manual_seed(0)
    return torch.rand(count, model.channels, *model.image_size)
