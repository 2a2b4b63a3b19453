"""Adapters of diffusers pipelines whose denoiser works on the latents of a VAE."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dreamda_aug.models.base import check_unet
from dreamda_aug.models.codec import ImageCodec
from dreamda_aug.models.denoiser import DenoiserModel, pair
from dreamda_aug.models.unet import UNetModel


class OnLatents(DenoiserModel):
    """The part of a model that goes through a VAE."""

    codec: ImageCodec

    def _take_codec(
        self, codec: ImageCodec, native: tuple[int, ...], image_size: tuple[int, int] | None,
        multiple: int,
    ) -> None:
        """Use a codec for images of this size; None: the model's own."""
        self.codec, self.channels, self.low_memory = codec, codec.channels, codec.low_memory
        height, width = image_size or native
        self.image_size = height, width
        if height % multiple or width % multiple:
            raise ValueError(
                f"image_size must be a multiple of {multiple} for this VAE, got {self.image_size}."
            )

    @property
    def vae(self) -> Any:
        return self.codec.vae

    @property
    def decode_batch(self) -> int:
        """How many images are decoded at once."""
        return self.codec.decode_batch

    @decode_batch.setter
    def decode_batch(self, count: int) -> None:
        self.codec.decode_batch = count

    def _identifying(self) -> tuple[Any, ...]:
        return self.denoiser, self.codec.vae

    @property
    def in_tiles(self) -> bool:
        return self.codec.in_tiles(self.image_size)

    def encode(self, images: Tensor) -> Tensor:
        return self.codec.encode(images, self.device)

    def decode(self, latents: Tensor) -> Tensor:
        return self.codec.decode(latents, self.device)


class LatentModel(OnLatents, UNetModel):
    """A U-Net on the latents of a VAE: Stable Diffusion 1.x, 2.x and XL, Turbo, LCM, LDM.

    Args:
        pipeline: an object with ``unet``, ``vae`` (or ``vqvae``) and ``scheduler``; prompts are
            used if it has ``encode_prompt``, class labels if the U-Net has a class embedding.
        name: where it came from.
        image_size: height and width in pixels; None: what the U-Net was trained for.
        class_names: as in `PixelModel`.
        null_class: as in `PixelModel`.
        decode_batch: as in `ImageCodec`.
        low_memory: as in `ImageCodec`.

    Attributes are those of `DiffusionModel`.
    """

    def __init__(
        self,
        pipeline: Any,
        name: str = "latent pipeline",
        image_size: tuple[int, int] | None = None,
        class_names: Sequence[str] | None = None,
        null_class: int | None = None,
        decode_batch: int = 8,
        low_memory: bool = False,
    ):
        check_unet(pipeline.unet)
        vae = getattr(pipeline, "vae", None) or pipeline.vqvae
        codec = ImageCodec(vae, decode_batch, low_memory)
        native = tuple(side * codec.factor for side in pair(pipeline.unet.config.sample_size))
        self._take_codec(codec, native, image_size, codec.factor)
        super().__init__(pipeline, name, class_names, null_class)
