"""What the adapters of all diffusers pipelines share, U-Net or transformer."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from dreamda_aug.errors import ModelError
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.models.base import Condition
from dreamda_aug.models.conditioning import Conditioning
from dreamda_aug.models.fingerprints import Fingerprint, digest_of
from dreamda_aug.models.hook import BottleneckHook
from dreamda_aug.models.schedules import Spacing, build_schedule

# Where a pipeline's shift depends on the number of steps (FLUX.2), uniform spacing takes that of
# this many, the pipelines' default: a strength must mean one noise level at any number of steps.
_SHIFT_STEPS = 50


class DenoiserModel:
    """A pipeline's denoiser, its scheduler and its conditions; see `DiffusionModel`."""

    is_pixel_model = False
    low_memory: bool = False
    lora: str | None = None
    block_index: int | None = None
    embedded_guidance: float | None = None
    image_size: tuple[int, int]
    channels: int

    def __init__(
        self, pipeline: Any, name: str, denoiser: Any, hook: BottleneckHook,
        conditioning: Conditioning,
    ):
        self.pipeline, self.name, self.denoiser = pipeline, name, denoiser.eval()
        self.hook, self.conditioning = hook, conditioning
        self.condition_kind, self.guidable = conditioning.kind, conditioning.guidable
        self.class_names = conditioning.class_names
        self._fingerprint = Fingerprint(*self._identifying())
        self._compiled: Any = None
        # a weight that tells the dtype: diffusers' own property goes through all modules, and it
        # is asked for at every step
        self._weight = next(
            (p for p in self.denoiser.parameters() if p.dtype == self.denoiser.dtype), None)
        self._schedules: dict[Any, NoiseSchedule] = {}

    def _identifying(self) -> tuple[Any, ...]:
        """The modules that an inversion depends on, beside the condition's embedding."""
        return (self.denoiser,)

    def _flow_options(self, steps: int) -> dict[str, Any]:
        """What the pipeline gives its scheduler beside the number of steps."""
        return {}

    @property
    def in_tiles(self) -> bool:
        return False

    @property
    def fingerprint(self) -> str:
        return self._fingerprint.value

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        # weights that are only stored in 8 bits are computed with in another dtype
        if self._weight is None or self._weight.dtype.itemsize == 1:
            return self.denoiser.dtype
        return self._weight.dtype

    def schedule(self, steps: int, strength: float, spacing: Spacing = "uniform") -> NoiseSchedule:
        scheduler = self.pipeline.scheduler
        # a scheduler may be put in another's place, or its configuration changed, at any time
        key = (type(scheduler), repr(scheduler.config), steps, strength, spacing, self.device)
        if key not in self._schedules:
            options = self._flow_options(steps if spacing == "scheduler" else _SHIFT_STEPS)
            self._schedules = {key: build_schedule(
                scheduler, steps, strength, spacing, is_pixel_model=self.is_pixel_model, **options,
            ).to(self.device)}
        return self._schedules[key]

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        return self.conditioning.embed(conditions)

    def embed_only(self, conditions: Sequence[Condition]) -> None:
        self.conditioning.embed_only(conditions)

    def condition_digest(self, condition: Condition) -> str:
        return digest_of(self.embed([condition]))

    def _inputs(self, condition: dict[str, Tensor]) -> dict[str, Tensor]:
        """A condition in the denoiser's dtype; indices and masks keep their own."""
        return {name: value.to(self.dtype) if value.is_floating_point() else value
                for name, value in condition.items()}

    def _finished(self, output: Tensor, x_t: Tensor) -> Tensor:
        """The prediction in a denoiser's output, float32, contiguous; its rows are counted."""
        # models with learned variance predict it in the second half of the channels
        output = output[:, : x_t.shape[1]].float().contiguous()
        self.hook.encoder_rows += len(x_t)
        self.hook.decoder_rows += len(output)
        return output

    def compiled(self, **options: Any) -> Self:
        other = copy.copy(self)
        other._compiled = self._compile({"dynamic": False, **options})
        return other

    def _compile(self, options: dict[str, Any]) -> Any:
        return torch.compile(self.denoiser, **options)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        parts = self._identifying()
        dtypes, compiled = [part.dtype for part in parts], self._compiled
        self._compiled = None  # this is rare
        # nn.Module's own method: diffusers' one warns at every change of dtype
        for part in parts:
            nn.Module.to(part, torch.float32)
        try:
            yield
        finally:
            self._compiled = compiled
            for part, dtype in zip(parts, dtypes, strict=True):
                nn.Module.to(part, dtype)

    def unsafe(self, images: Tensor) -> Tensor:
        flags = None
        if getattr(self.pipeline, "safety_checker", None) is not None:
            arrays = images.permute(0, 2, 3, 1).cpu().numpy()
            _, flags = self.pipeline.run_safety_checker(arrays, self.device, self.dtype)
        return torch.tensor([False] * len(images) if flags is None else flags)


def check_denoiser(denoiser: Any, has_ip_adapter: bool) -> None:
    """Raise `ModelError` if a denoiser is conditioned on an image, or has no weights loaded."""
    kind = type(denoiser).__name__
    if has_ip_adapter:
        raise ModelError(f"{kind} has an IP-Adapter loaded, which conditions on an image too; "
                         "unload it with pipeline.unload_ip_adapter().")
    if any(parameter.is_meta for parameter in denoiser.parameters()):
        raise ModelError(f"{kind} has weights on the meta device (offloaded or not loaded yet); "
                         "load the pipeline without offloading, and give low_memory=True on small "
                         "GPUs.")


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
