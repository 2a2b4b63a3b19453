"""What the adapters of all diffusers pipelines share, whatever the denoiser is."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.models.base import Condition
from dreamda_aug.models.conditioning import Conditioning
from dreamda_aug.models.fingerprints import Fingerprint, digest_of
from dreamda_aug.models.hook import BottleneckHook
from dreamda_aug.models.schedules import Spacing, build_schedule


class DenoiserModel:
    """A pipeline's denoiser, its scheduler and its conditions.

    Args:
        pipeline: has ``scheduler``.
        name: where it came from.
        denoiser: its U-Net or transformer.
        hook: the hooks on it.
        conditioning: what it is conditioned on.

    Attributes are those of `DiffusionModel`.
    """

    is_pixel_model = False
    image_size: tuple[int, int]
    channels: int
    low_memory: bool = False
    lora: str | None = None
    block_index: int | None = None
    embedded_guidance: float | None = None

    def __init__(
        self, pipeline: Any, name: str, denoiser: Any, hook: BottleneckHook,
        conditioning: Conditioning,
    ):
        self.pipeline, self.name = pipeline, name
        self.denoiser = denoiser.eval()
        self.hook, self.conditioning = hook, conditioning
        self._fingerprint = Fingerprint(*self._identifying())
        self._call: Callable[..., Any] = self.denoiser
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
        """Whether images are encoded in tiles, which gives other latents."""
        return False

    @property
    def fingerprint(self) -> str:
        return self._fingerprint.value

    @property
    def condition_kind(self) -> Literal["text", "class", "none"]:
        return self.conditioning.kind

    @property
    def guidable(self) -> bool:
        return self.conditioning.guidable

    @property
    def class_names(self) -> list[str] | None:
        return self.conditioning.class_names

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        # weights that are only stored in 8 bits are computed with in another dtype
        if self._weight is None or self._weight.dtype.itemsize == 1:
            return self.denoiser.dtype
        return self._weight.dtype

    def schedule(
        self, steps: int, strength: float, spacing: Spacing = "uniform"
    ) -> NoiseSchedule:
        scheduler = self.pipeline.scheduler
        # a scheduler may be put in another's place, or its configuration changed, at any time
        key = (type(scheduler), repr(scheduler.config), steps, strength, spacing, self.device)
        if key not in self._schedules:
            self._schedules = {key: build_schedule(
                scheduler, steps, strength, spacing, is_pixel_model=self.is_pixel_model,
                **self._flow_options(steps),
            ).to(self.device)}
        return self._schedules[key]

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        return self.conditioning.embed(conditions)

    def condition_digest(self, condition: Condition) -> str:
        return digest_of(self.conditioning.embed([condition]))

    def embed_only(self, conditions: Sequence[Condition]) -> None:
        self.conditioning.embed_only(conditions)

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
        """The same model, run through ``torch.compile``; this one stays as it is.

        Both share weights and hook; the hook is in place already and survives compilation.

        Args:
            options: for ``torch.compile``; static shapes unless ``dynamic`` is given.
        """
        other = copy.copy(self)
        other._call = torch.compile(self.denoiser, **{"dynamic": False, **options})
        return other

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Run in float32 for a while; half-precision weights come back unchanged."""
        parts = self._identifying()
        dtypes, call = [part.dtype for part in parts], self._call
        self._call = self.denoiser  # not compiled: this is rare
        # nn.Module's own method: diffusers' one warns at every change of dtype
        for part in parts:
            nn.Module.to(part, torch.float32)
        try:
            yield
        finally:
            self._call = call
            for part, dtype in zip(parts, dtypes, strict=True):
                nn.Module.to(part, dtype)

    def unsafe(self, images: Tensor) -> Tensor:
        """Which images (B, C, H, W) the pipeline's safety checker rejects, (B,) bool."""
        flags = None
        if getattr(self.pipeline, "safety_checker", None) is not None:
            arrays = images.permute(0, 2, 3, 1).cpu().numpy()
            _, flags = self.pipeline.run_safety_checker(arrays, self.device, self.dtype)
        return torch.tensor([False] * len(images) if flags is None else flags)


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width
