"""What the models of all families share: denoiser, conditions, schedule, and a VAE if any."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamda_aug.errors import ModelError
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.models.conditioning import Condition, Conditioning
from dreamda_aug.models.fingerprints import digest_of, digest_of_models, quick_look
from dreamda_aug.models.hook import BottleneckHook
from dreamda_aug.models.schedules import Spacing, build_schedule

# Where a pipeline's shift depends on the number of steps (FLUX.2), uniform spacing takes that of
# this many, the pipelines' default: a strength must mean one noise level at any number of steps.
_SHIFT_STEPS = 50


class DiffusionModel(ABC):
    """A diffusion model on pixels or on a VAE's latents; see `UNetModel` and `TransformerModel`.

    Attributes:
        name: hub id, path or other name, for messages.
        pipeline: the diffusers pipeline; a change of its parts is noticed.
        image_size: height and width of its images, in pixels.
        channels: channels of its images, 1 or 3.
        hook: the hooks on its bottleneck, or on the block that stands in for one.
        condition_kind: what it can be conditioned on: "text", "class" or "none".
        class_names: names of its classes in the order of its class embedding, or None.
        guidable: whether it has an unconditional branch to guide away from.
        vae: its VAE, or a copy where it had to be changed: ``AutoencoderKL``, ``VQModel``,
            ``AutoencoderDC``, ``AutoencoderKLQwenImage`` (one frame of a video) or
            ``AutoencoderKLFlux2`` (latents in 2×2 patches, normalised by running statistics).
            None for a model on pixels.
        factor: how many pixels of a side become one latent (one patch, where they come in patches).
        patch: how many latents of a side are one patch.
        latent_channels: channels of the latents.
        decode_batch: images that are decoded at once; a VAE needs far more memory per image than a
            denoiser.
        low_memory: whether images are decoded one at a time.
        lora: source of the LoRA weights that were added, as in `ModelSpec`, or None.
        block_index: for transformers, index of the block behind which noise enters, or None.
        embedded_guidance: guidance scale that a guidance-distilled transformer takes as an input,
            or None.
    """

    vae: Any = None
    low_memory: bool = False
    lora: str | None = None
    block_index: int | None = None
    embedded_guidance: float | None = None
    image_size: tuple[int, int]
    channels: int
    hook: BottleneckHook

    def __init__(
        self, pipeline: Any, name: str, denoiser: Any, hook: BottleneckHook,
        conditioning: Conditioning,
    ):
        self.pipeline, self.name, self.denoiser = pipeline, name, denoiser.eval()
        self.hook, self.conditioning = hook, conditioning
        self.condition_kind, self.guidable = conditioning.kind, conditioning.guidable
        self.class_names = conditioning.class_names
        self._seen = self._digest = ""
        self._compiled: Any = None
        # a weight that tells the dtype: diffusers' own property goes through all modules, and it
        # is asked for at every step
        self._weight = next(
            (p for p in self.denoiser.parameters() if p.dtype == self.denoiser.dtype), None)

    def _take_vae(self, vae: Any, low_memory: bool) -> None:
        """Use a VAE; see `ModelSpec` for low memory."""
        config = vae.config
        overflows = config.get("force_upcast") and vae.dtype == torch.float16  # it says so
        # a copy: changed, it would be of no use to whoever handed the pipeline over
        self.vae = (copy.deepcopy(vae) if low_memory or overflows else vae).eval()
        self.low_memory, self.decode_batch = low_memory, 1 if low_memory else 8
        self._has_frames = config.get("z_dim") is not None  # a VAE of videos
        self.patch = 1 if getattr(vae, "bn", None) is None else int(config.patch_size[0])
        widths = config.get("block_out_channels") or config.get("encoder_block_out_channels")
        down = len(config.temperal_downsample) if widths is None else len(widths) - 1
        self.factor = 2**down * self.patch
        self.channels = int(config.get("in_channels") or config.get("input_channels") or 3)
        latents = config.get("latent_channels") or config.get("z_dim") or 0
        self.latent_channels = int(latents) * self.patch**2
        if overflows:
            self.vae.to(torch.float32)
        if low_memory:
            for switch in ("slicing", "tiling"):
                if hasattr(self.vae, f"use_{switch}"):  # a VQModel has neither, and would raise
                    getattr(self.vae, f"enable_{switch}")()
            self.vae.to("cpu")

    def _take_size(self, size: Sequence[int], multiple: int) -> None:
        self.image_size = pair(size)
        if any(side % multiple for side in self.image_size):
            raise ValueError(
                f"image_size must be a multiple of {multiple} for this VAE, got {self.image_size}.")

    def _identifying(self) -> tuple[Any, ...]:
        """The modules that an inversion depends on, beside the condition's embedding."""
        return (self.denoiser,) if self.vae is None else (self.denoiser, self.vae)

    def _flow_options(self, steps: int) -> dict[str, Any]:
        """What the pipeline gives its scheduler beside the number of steps."""
        return {}

    @property
    def in_tiles(self) -> bool:
        """Whether images are encoded in tiles, which gives other latents."""
        return bool(getattr(self.vae, "use_tiling", False))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of weights and configuration as they are now, computed again after a change."""
        now = quick_look(*self._identifying())
        if now != self._seen:
            self._seen, self._digest = now, digest_of_models(*self._identifying())
        return self._digest

    @property
    def device(self) -> torch.device:
        """Device of its denoiser (U-Net or transformer)."""
        return self.denoiser.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that its denoiser computes in."""
        # weights that are only stored in 8 bits are computed with in another dtype
        if self._weight is None or self._weight.dtype.itemsize == 1:
            return self.denoiser.dtype
        return self._weight.dtype

    def schedule(self, steps: int, strength: float, spacing: Spacing = "uniform") -> NoiseSchedule:
        """The steps of a run as `Settings` describes them, on the model's device."""
        options = self._flow_options(steps if spacing == "scheduler" else _SHIFT_STEPS)
        # a scheduler may be put in another's place, or its configuration changed, at any time
        return build_schedule(self.pipeline.scheduler, steps, strength, spacing,
                              is_pixel_model=self.vae is None, **options).to(self.device)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to clean latents, float32."""
        if self.vae is None:
            return images.to(self.device, torch.float32) * 2 - 1
        pixels = images.to(self.device, self.vae.dtype) * 2 - 1
        with self._vae_at_hand():
            encoded = self.vae.encode(pixels[:, :, None] if self._has_frames else pixels)
        # the mode, not a draw: the same image must give the same latents
        latents = encoded.latent_dist.mode() if "latent_dist" in encoded else encoded[0]
        latents = (latents[:, :, 0] if self._has_frames else latents).float()
        shift, scale = self._range()
        return ((F.pixel_unshuffle(latents, self.patch) - shift) * scale).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images (B, C, H, W), float32 in [0, 1]."""
        if self.vae is None:
            return (latents.float() / 2 + 0.5).clamp(0, 1)
        shift, scale = self._range()
        latents = F.pixel_shuffle(latents.float() / scale + shift, self.patch)
        latents = latents.to(self.vae.dtype)
        if self._has_frames:
            latents = latents[:, :, None]
        with self._vae_at_hand():
            pixels = [self.vae.decode(part).sample.float()
                      for part in latents.split(self.decode_batch)]
        images = torch.cat([part[:, :, 0] for part in pixels] if self._has_frames else pixels)
        return (images / 2 + 0.5).clamp(0, 1)

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        """Denoiser inputs with one row for each condition; None is the unconditional one."""
        return self.conditioning.embed(conditions)

    def embed_only(self, conditions: Sequence[Condition]) -> None:
        """Precompute embeddings for these conditions and free the text encoders."""
        self.conditioning.embed_only(conditions)

    def condition_digest(self, condition: Condition) -> str:
        """Digest of an embedded condition, which changes with the text encoder too."""
        return digest_of(self.embed([condition]))

    @abstractmethod
    def predict(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The denoiser's output for x_t (R, C, H, W) at timestep t (0-d), float32, contiguous.

        The memory layout of ``x_t`` plays no role: recording and replay must run the same kernels.
        """

    def features(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Output (R, C, H, W) of the first block behind the bottleneck; the rest is not run."""
        # a graph that was compiled before does not have the hook that stops it
        with torch.compiler.set_stance("force_eager"):
            return self.hook.output_behind(lambda: self.predict(x_t, t, condition)).float()

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
        """The same model run through ``torch.compile``, with static shapes unless ``options`` has
        ``dynamic``; this one stays as it is, and both share weights and hook."""
        other = copy.copy(self)
        other._compiled = self._compile({"dynamic": False, **options})
        return other

    def _compile(self, options: dict[str, Any]) -> Any:
        return torch.compile(self.denoiser, **options)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Context in which the model runs in float32."""
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
        """Which images (B, C, H, W) a safety checker rejects, (B,) bool on the CPU."""
        if getattr(self.pipeline, "safety_checker", None) is None:
            return torch.zeros(len(images), dtype=torch.bool)
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        return torch.tensor(self.pipeline.run_safety_checker(arrays, self.device, self.dtype)[1])

    @contextmanager
    def _vae_at_hand(self) -> Iterator[None]:
        """Within it, the VAE lies where the denoiser does."""
        if self.low_memory:
            self.vae.to(self.device)
        try:
            yield
        finally:
            if self.low_memory:
                self.vae.to("cpu")

    def _range(self) -> list[Tensor]:
        """Shift and scale with which the VAE's latents become the denoiser's: (z - shift) · scale;
        they broadcast with (B, C, H, W)."""
        config, statistics = self.vae.config, getattr(self.vae, "bn", None)
        shift, scale = config.get("shift_factor") or 0.0, config.get("scaling_factor") or 1.0
        if statistics is not None:
            shift = statistics.running_mean.float()
            scale = 1 / (statistics.running_var.float() + config.batch_norm_eps).sqrt()
        elif (means := config.get("latents_mean")) is not None:
            shift, scale = means, scale / torch.tensor(config.latents_std, dtype=torch.float32)
        return [torch.as_tensor(each, dtype=torch.float32, device=self.device).view(-1, 1, 1)
                for each in (shift, scale)]


def check_denoiser(denoiser: Any, channels: int) -> None:
    """Raise `ModelError` if it takes more than noise of so many channels and a prompt or class."""
    kind, takes = type(denoiser).__name__, denoiser.config.in_channels
    if takes != channels:
        raise ModelError(
            f"{kind} takes {takes} channels, of which noise is {channels}: a model for inpainting, "
            "super-resolution, control or editing, which needs an image beside the noise. Use the "
            "text-to-image model.")
    if any("IPAdapter" in type(part).__name__ for part in denoiser.modules()):
        raise ModelError(f"{kind} has an IP-Adapter loaded, which conditions on an image too; "
                         "unload it with pipeline.unload_ip_adapter().")


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
