"""What the rest of the library asks of a diffusion model."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from dreamda_aug.errors import BackboneError
from dreamda_aug.perturbation import BottleneckTap
from dreamda_aug.schedule import NoiseSchedule

# One image's condition: a prompt, a class index, or None for the unconditional one.
Condition = str | int | None


class Backbone(Protocol):
    """A diffusion model with a bottleneck; see `PixelBackbone` and `LatentBackbone`.

    Attributes:
        name: where it came from, for people.
        fingerprint: changes whenever weights or configuration do.
        image_size: height and width of the images that it makes, in pixels.
        channels: channels of those images, 1 or 3.
        condition_kind: ``"text"``, ``"class"`` or ``"none"``: what it can be told.
        guidable: whether it knows an unconditional branch to guide away from.
        device: where its U-Net lies.
        dtype: of its U-Net.
        tap: the hooks on its bottleneck.
    """

    name: str
    fingerprint: str
    image_size: tuple[int, int]
    channels: int
    condition_kind: Literal["text", "class", "none"]
    guidable: bool
    device: torch.device
    dtype: torch.dtype
    tap: BottleneckTap

    def schedule(self, steps: int, strength: float) -> NoiseSchedule:
        """The last ``strength`` share of ``steps`` steps, on the backbone's device."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to clean latents, float32."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images (B, C, H, W), float32 in [0, 1]."""
        ...

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        """Conditions as U-Net inputs with one row each; None is the unconditional one."""
        ...

    def embed_only(self, conditions: Sequence[Condition]) -> None:
        """Promise that no other conditions will be asked for, so that text encoders can go."""
        ...

    def predict(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The U-Net's output for x_t (R, C, H, W) at timestep t (0-d), float32."""
        ...

    def compile(self, **options) -> None:
        """Run the U-Net through ``torch.compile`` from now on."""
        ...

    def in_float32(self) -> AbstractContextManager[None]:
        """Within it, the model runs in float32."""
        ...

    def unsafe(self, images: Tensor) -> Tensor:
        """Which images (B, C, H, W) a safety checker rejects, (B,) bool on the CPU."""
        ...


def check_unet(unet: nn.Module) -> None:
    """Refuse a denoiser that has no bottleneck to perturb, with a reason."""
    kind = type(unet).__name__
    if getattr(unet, "mid_block", None) is None or not hasattr(unet, "up_blocks"):
        raise BackboneError(
            f"{kind} has no U-Net bottleneck (mid_block and up_blocks), which is where the "
            "perturbation enters. Use a U-Net backbone such as Stable Diffusion 1.x, 2.x or XL."
        )
    if unet.config.get("time_embedding_type") == "fourier":
        raise BackboneError(
            f"{kind} has time_embedding_type='fourier' (a score-SDE model), whose noise schedule "
            "is not a DDPM one. Use a backbone with time_embedding_type='positional'."
        )


def build_schedule(scheduler, steps: int, strength: float) -> NoiseSchedule:
    """The steps that diffusers' DDIM scheduler would take with the same configuration.

    Latent consistency models were distilled on steps that end at the noisiest one, so their steps
    are spaced from there ("trailing"), whatever their configuration says.

    Args:
        scheduler: any diffusers scheduler with a DDPM-type configuration.
        steps: number of steps from pure noise to the image.
        strength: share of them that is run, in (0, 1].
    """
    from diffusers import DDIMScheduler

    spacing = {"timestep_spacing": "trailing"} if "LCM" in type(scheduler).__name__ else {}
    ddim = DDIMScheduler.from_config(scheduler.config, **spacing)
    ddim.set_timesteps(steps)
    count = min(int(steps * strength), steps)
    if count == 0:
        raise ValueError(
            f"strength {strength} of {steps} steps leaves no step to run; "
            f"use steps >= {-(-1 // strength):.0f} or a larger strength."
        )
    timesteps = ddim.timesteps[steps - count :]
    alpha_bars = torch.cat([ddim.alphas_cumprod[timesteps], ddim.final_alpha_cumprod.reshape(1)])
    clip = float(ddim.config.clip_sample_range) if ddim.config.clip_sample else None
    return NoiseSchedule(timesteps, alpha_bars, ddim.config.prediction_type, clip)


def fingerprint_of(*modules: nn.Module) -> str:
    """SHA-256 over configuration and weights, in hexadecimal; takes about 1 s per 2 GB.

    LoRA weights count, and how strongly they are mixed in.
    """
    digest = hashlib.sha256()
    for module in modules:
        config = {k: v for k, v in dict(module.config).items() if not k.startswith("_")}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            data = tensor.detach().cpu().contiguous().flatten()
            digest.update(data.view(torch.uint8).numpy() if data.numel() else b"")
        for name, part in module.named_modules():
            if isinstance(getattr(part, "scaling", None), dict):  # a LoRA layer of peft
                digest.update(f"{name}{sorted(part.scaling.items())}".encode())
                digest.update(repr(part.active_adapters).encode())
    return digest.hexdigest()
