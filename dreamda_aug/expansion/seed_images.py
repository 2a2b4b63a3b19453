"""Seed images from a source to the model, and synthetic ones to PNG."""

import errno
import hashlib
import io
from dataclasses import dataclass, replace

import PIL.Image
import PIL.PngImagePlugin
import torch
from torch import Tensor

from dreamda_aug.expansion.manifest import ManifestLine
from dreamda_aug.inputs.images import UNREADABLE, Pixels, fit_back, fit_to, read_pixels
from dreamda_aug.inputs.opening import TooLarge, check_pixels
from dreamda_aug.inputs.sources import HasFileDigests, Source
from dreamda_aug.models import DiffusionModel

# Errors of the machine rather than of the file.
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE}
_AS_COLOUR = {"P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa", "La"}


@dataclass(frozen=True)
class SeedImage:
    """A seed image, ready for the model.

    Attributes:
        values: its pixels at the model's size and channels, (1, C, H, W) in [0, 1].
        digest: SHA-256 of its original pixels.
        file_digest: SHA-256 of its file; empty where the source has none.
        pixels: the way back, see `back`.
        shape: its own shape, (1, C, H, W).
    """

    values: Tensor
    digest: str
    file_digest: str
    pixels: Pixels
    shape: torch.Size

    def back(self, made: Tensor) -> PIL.Image.Image:
        """A synthetic image (1, C, H, W) as a PIL image of the seed image's size and mode."""
        # one number, expanded: only shape and device are looked at
        image = self.pixels.restore(fit_back(made, torch.zeros(1).expand(self.shape)))
        assert isinstance(image, PIL.Image.Image)  # as the seed image was
        return image


def read_seed_image(source: Source, index: int, model: DiffusionModel) -> SeedImage:
    """Open and prepare a seed image.

    Raises:
        Unreadable: the file is broken, too large, not there, or cannot be stored as PNG.
    """
    file_digest = digest_of_file(source, index)
    pixels = read_storable(source, index)
    values, shape = fit_to(pixels.values, model), pixels.values.shape
    light = replace(pixels, values=values)
    return SeedImage(values, pixels.digests[0], file_digest, light, shape)


def read_storable(source: Source, index: int) -> Pixels:
    """The pixels of a seed image.

    Raises:
        Unreadable: the file is broken, too large, not there, or cannot be stored as PNG.
    """
    try:
        image = source.open(index)
        check_pixels(*image.size)
        return read_pixels(to_storable(image))
    except TooLarge as error:
        raise Unreadable(str(error)) from error
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno in _OURS:
            raise
        # without the message: it may hold paths, and the record must be the same everywhere
        raise Unreadable(f"unreadable ({type(error).__name__})") from error


def digest_of_file(source: Source, index: int) -> str:
    """SHA-256 of a seed image's file, in hexadecimal; empty where there is no file."""
    return source.file_digest(index) if isinstance(source, HasFileDigests) else ""


class Unreadable(Exception):
    """A seed image cannot be used; the message is the same on every machine."""


def to_storable(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image in a mode that PNG keeps without loss: L, LA, RGB, RGBA or 16-bit grey.

    Raises:
        ValueError: it is a float image, or deeper than 16 bits.
    """
    if image.mode == "F":
        raise ValueError("PNG keeps no float images")
    if image.mode == "1":
        return image.convert("L")
    if image.mode in _AS_COLOUR:
        transparent = "transparency" in image.info or image.mode in ("PA", "RGBa", "La")
        return image.convert("RGBA" if transparent else "RGB")
    if image.mode.startswith("I"):
        low, high = image.getextrema()
        assert not isinstance(low, tuple) and not isinstance(high, tuple)  # it has one band
        if low < 0 or high > 0xFFFF:
            raise ValueError("PNG keeps 16 bits at most")
        return image if image.mode == "I;16" else image.convert("I").convert("I;16")
    return image


def pixel_digest(image: PIL.Image.Image) -> str:
    """SHA-256 of an image's mode, size and pixels, in hexadecimal."""
    digest = hashlib.sha256(f"{image.mode}{image.size}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def encode_png(image: PIL.Image.Image, line: ManifestLine) -> bytes:
    """A PNG that is marked as synthetic and carries its manifest line."""
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("synthetic", "true")
    text.add_text("dreamda", line.in_image())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()
