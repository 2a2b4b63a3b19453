"""What the rest of the library asks of a diffusion model."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from dreamda_aug.errors import ModelError
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.models.hook import BottleneckHook
from dreamda_aug.models.schedules import Spacing

# One image's condition: a prompt, a class index, or None for the unconditional one.
Condition = str | int | None


class DiffusionModel(Protocol):
    """A diffusion model; see `PixelModel`, `LatentModel` and `TransformerModel`.

    Attributes:
        name: where it came from, for people.
        image_size: height and width of the images that it makes, in pixels.
        channels: channels of those images, 1 or 3.
        condition_kind: ``"text"``, ``"class"`` or ``"none"``: what it can be conditioned on.
        class_names: names of its classes in the order of its class embedding, or None.
        guidable: whether it knows an unconditional branch to guide away from.
        device: where its denoiser (U-Net or transformer) lies.
        dtype: of its denoiser.
        hook: the hooks on its bottleneck, or on the block that stands in for one.
        in_tiles: whether images are encoded in tiles, which gives other latents.
        low_memory: whether images are decoded one at a time.
        lora: what LoRA weights are added to its own, as `ModelSpec` takes them, or None.
        block_index: for transformers, the number of the block behind which noise enters; else None.
        embedded_guidance: for guidance-distilled transformers, the guidance scale that they take as
            an input; else None.
    """

    name: str
    image_size: tuple[int, int]
    channels: int
    hook: BottleneckHook
    low_memory: bool
    lora: str | None
    block_index: int | None
    embedded_guidance: float | None

    @property
    def in_tiles(self) -> bool: ...

    @property
    def fingerprint(self) -> str:
        """Digest of weights and configuration as they are now."""
        ...

    @property
    def condition_kind(self) -> Literal["text", "class", "none"]: ...

    @property
    def class_names(self) -> list[str] | None: ...

    @property
    def guidable(self) -> bool: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def schedule(
        self, steps: int, strength: float, spacing: Spacing = "uniform"
    ) -> NoiseSchedule:
        """The steps of a run as `Settings` describes them, on the model's device."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to clean latents, float32."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images (B, C, H, W), float32 in [0, 1]."""
        ...

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        """Conditions as denoiser inputs with one row each; None is the unconditional one."""
        ...

    def condition_digest(self, condition: Condition) -> str:
        """Digest of what a condition is for the denoiser: changes with the text encoder too."""
        ...

    def embed_only(self, conditions: Sequence[Condition]) -> None:
        """Promise that no other conditions will be asked for, so that text encoders can go."""
        ...

    def predict(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The denoiser's output for x_t (R, C, H, W) at timestep t (0-d), float32, contiguous.

        The memory layout of ``x_t`` plays no role: recording and replay must run the same kernels.
        """
        ...

    def features(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Output (R, C, H, W) of the first block behind the bottleneck; nothing more is run."""
        ...

    def compiled(self, **options: Any) -> "DiffusionModel":
        """The same model run through ``torch.compile``; this one stays as it is."""
        ...

    def in_float32(self) -> AbstractContextManager[None]:
        """Within it, the model runs in float32."""
        ...

    def unsafe(self, images: Tensor) -> Tensor:
        """Which images (B, C, H, W) a safety checker rejects, (B,) bool on the CPU."""
        ...


@runtime_checkable
class _Hooked(Protocol):
    """What no pipeline and no name has."""

    hook: BottleneckHook


def is_model(value: Any) -> TypeGuard[DiffusionModel]:
    """Whether it is a loaded model, and not a source of one.

    The hook decides: a check of every member would read its fingerprint, and hash all weights.
    """
    return isinstance(value, _Hooked)


def check_unet(unet: Any) -> None:
    """Refuse a denoiser that has no bottleneck to perturb, with a reason."""
    kind = type(unet).__name__
    if not all(hasattr(unet, name) for name in ("down_blocks", "mid_block", "up_blocks")):
        raise ModelError(
            f"{kind} has no U-Net bottleneck (down_blocks, mid_block and up_blocks), which is "
            "where the perturbation enters. Use a U-Net model such as Stable Diffusion 1.x, 2.x "
            "or XL."
        )
    channels, out = unet.config.in_channels, unet.config.out_channels
    if out not in (channels, 2 * channels):
        raise ModelError(
            f"{kind} takes {channels} channels and gives {out}: an inpainting or super-resolution "
            "model, which needs a mask or an image beside the noise. Use the text-to-image model."
        )
    check_ready(unet, unet.config.get("encoder_hid_dim_type") in (
        "ip_image_proj", "text_image_proj"))
    if unet.config.get("time_embedding_type") == "fourier":
        raise ModelError(
            f"{kind} has time_embedding_type='fourier' (a score-SDE model), whose noise schedule "
            "is not a DDPM one. Use a model with time_embedding_type='positional'."
        )


def check_ready(denoiser: Any, has_ip_adapter: bool) -> None:
    """Refuse a denoiser that is conditioned on an image, or whose weights are not there."""
    kind = type(denoiser).__name__
    if has_ip_adapter:
        raise ModelError(
            f"{kind} has an IP-Adapter loaded, which conditions on an image too; unload it with "
            "pipeline.unload_ip_adapter()."
        )
    if any(parameter.is_meta for parameter in denoiser.parameters()):
        raise ModelError(
            f"{kind} has weights on the meta device (offloaded or not loaded yet); load the "
            "pipeline without offloading, and give low_memory=True on small GPUs."
        )
