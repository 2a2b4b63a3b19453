"""What the rest of the library asks of a diffusion model."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.models.hook import BottleneckHook
from dreamda_aug.models.schedules import Spacing

# One image's condition: a prompt, a class index, or None for the unconditional one.
Condition = str | int | None


class DiffusionModel(Protocol):
    """A diffusion model; see `PixelModel`, `LatentModel` and `TransformerModel`.

    Attributes:
        name: where it came from, for people.
        image_size: height and width of its images, in pixels.
        channels: channels of its images, 1 or 3.
        hook: the hooks on its bottleneck, or on the block that stands in for one.
        condition_kind: what it can be conditioned on.
        class_names: names of its classes in the order of its class embedding, or None.
        guidable: whether it has an unconditional branch to guide away from.
        low_memory: whether images are decoded one at a time.
        lora: source of the LoRA weights that were added, as in `ModelSpec`, or None.
        block_index: for transformers, index of the block behind which noise enters, or None.
        embedded_guidance: guidance scale that a guidance-distilled transformer takes as an input,
            or None.
    """

    name: str
    image_size: tuple[int, int]
    channels: int
    hook: BottleneckHook
    condition_kind: Literal["text", "class", "none"]
    class_names: list[str] | None
    guidable: bool
    low_memory: bool
    lora: str | None
    block_index: int | None
    embedded_guidance: float | None

    @property
    def in_tiles(self) -> bool:
        """Whether images are encoded in tiles, which gives other latents."""

    @property
    def fingerprint(self) -> str:
        """Digest of weights and configuration as they are now."""

    @property
    def device(self) -> torch.device:
        """Device of its denoiser (U-Net or transformer)."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its denoiser."""

    def schedule(self, steps: int, strength: float, spacing: Spacing = "uniform") -> NoiseSchedule:
        """The steps of a run as `Settings` describes them, on the model's device."""

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to clean latents, float32."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images (B, C, H, W), float32 in [0, 1]."""

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        """Denoiser inputs with one row for each condition; None is the unconditional one."""

    def embed_only(self, conditions: Sequence[Condition]) -> None:
        """Precompute embeddings for these conditions and free the text encoders."""

    def condition_digest(self, condition: Condition) -> str:
        """Digest of an embedded condition, which changes with the text encoder too."""

    def predict(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The denoiser's output for x_t (R, C, H, W) at timestep t (0-d), float32, contiguous.

        The memory layout of ``x_t`` plays no role: recording and replay must run the same kernels.
        """

    def features(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Output (R, C, H, W) of the first block behind the bottleneck; the rest is not run."""

    def compiled(self, **options: Any) -> "DiffusionModel":
        """The same model run through ``torch.compile``, with static shapes unless ``options`` has
        ``dynamic``; this one stays as it is, and both share weights and hook."""

    def in_float32(self) -> AbstractContextManager[None]:
        """Context in which the model runs in float32."""

    def unsafe(self, images: Tensor) -> Tensor:
        """Which images (B, C, H, W) a safety checker rejects, (B,) bool on the CPU."""


@runtime_checkable
class _Hooked(Protocol):
    hook: BottleneckHook


def is_model(value: Any) -> TypeGuard[DiffusionModel]:
    """Whether it is a loaded model, and not a source of one.

    The hook decides: a check of every member would read its fingerprint, and hash all weights.
    """
    return isinstance(value, _Hooked)
