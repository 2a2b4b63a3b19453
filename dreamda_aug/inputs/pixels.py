"""Pixels of anything image-like, and the way back: one rule for every door."""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import PIL.Image
import PIL.ImageFile
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from dreamda_aug.inputs.listing import UNREADABLE, check_size

Image = PIL.Image.Image | Tensor | np.ndarray[Any, Any]

_ORIENTATION = 0x0112
_KEPT_INFO = ("icc_profile", "dpi", "gamma", "srgb", "transparency")
# PIL's modes that a PNG file has, and those with transparency.
_OF_PNG = {"L", "LA", "RGB", "RGBA", "I;16"}
_TRANSPARENT = {"LA", "RGBA", "PA", "La", "RGBa"}


class ImageFormat(Protocol):
    """What images a model takes: ``channels`` of 1 or 3, ``image_size`` height and width."""

    name: str
    channels: int
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Pixels:
    """An image, or a batch of them, as floats, with the way back.

    Attributes:
        values: (B, C, H, W) float32 in [0, 1], C is 1 or 3.
        digests: one per image, of the original pixels.
        restore: from new values of the same shape to the original type, mode, dtype and device.
            PIL images keep transparency, colour profile, resolution, and of EXIF the orientation
            alone; subclasses stay what they are, those of Tensor with their attributes.
        store: from new values (1, C, H, W) to the PIL image that is written to a PNG file.
        load: from a stored PIL image to the original type, as ``restore`` gives it.
        loss: what a PNG file does not keep of such an image, as text; empty if it keeps all.
        has_8_bits: whether its type tells no more than 256 levels apart.
        is_fixed: whether ``load`` depends on the image's type alone, not on its pixels.
    """

    values: Tensor
    digests: list[str]
    restore: Callable[[Tensor], Any]
    store: Callable[[Tensor], PIL.Image.Image]
    load: Callable[[PIL.Image.Image], Any]
    loss: str
    has_8_bits: bool
    is_fixed: bool


def read_pixels(image: Image) -> Pixels:
    """Read a PIL image, an image tensor or an array.

    8-bit integers and floats in [0, 1] have a fixed range. Deeper images (PIL's ``I;16``, ``I`` and
    ``F``, and other integers than uint8) are scaled between their own darkest and brightest pixel,
    and back, since medical images rarely use the full range of their type. Floats that are
    multiples of 1/255 equal their uint8 image: same values and digest.

    Args:
        image: PIL in any mode; a tensor (C, H, W) or (B, C, H, W) with 1 or 3 channels, integer
            or float in [0, 1]; or a numpy array (H, W) or (H, W, C) of the same types, uint8 also
            with 4 channels, of which the last is transparency.

    Raises:
        TypeError: it is no image.
        ValueError: its channels or its range do not fit, it holds NaN, or it has more than
            `MAX_PIXELS` pixels (`TooLarge`).
    """
    if isinstance(image, PIL.Image.Image):
        check_size(*image.size)
        return _read_deep(image) if image.mode.startswith(("I", "F")) else _read_pil(image)
    if isinstance(image, Tensor):
        return _read_tensor(image)
    if isinstance(image, np.ndarray):
        return _read_array(image)
    raise TypeError(
        f"an image must be a PIL image, a tensor or a numpy array, got {type(image).__name__}.")


def image_digest(image: Tensor) -> str:
    """SHA-256 of an image's pixels, shape and dtype, in hexadecimal."""
    image = image.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(image.shape)}{image.dtype}".encode())
    digest.update(image.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fit_to(values: Tensor, model: ImageFormat) -> Tensor:
    """Pixels (B, C, H, W) in the model's size and channels, in [0, 1]."""
    if values.shape[1] == 3 and model.channels == 1:
        grey = _luminance(values)
        if not torch.allclose(grey.expand_as(values), values, atol=2 / 255):
            # from one place: Python shows it once
            warnings.warn(f"{model.name} makes grey images: the colours of the seed images are "
                          "lost. Use a model with 3 channels.", stacklevel=1)
        values = grey
    return _fit(values, model.channels, model.image_size)


def fit_back(values: Tensor, like: Tensor) -> Tensor:
    """Generated pixels (B, C, H, W) in the size, channels and device of the seed images."""
    _, channels, height, width = like.shape
    return _fit(values, channels, (height, width)).to(like.device)


def channels_of(array: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """The numbers of channels that an image array (H, W, C) of this type may have."""
    return (1, 3, 4) if array.dtype == np.uint8 else (1, 3)


def _fit(values: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    if channels == 1 and values.shape[1] == 3:
        values = _luminance(values)
    elif channels == 3 and values.shape[1] == 1:
        values = values.expand(-1, 3, -1, -1)
    if tuple(values.shape[2:]) != size:
        values = F.resize(values, list(size), antialias=True)
    return values.clamp(0, 1)


def _luminance(values: Tensor) -> Tensor:
    # torchvision's weights add up to 0.9999, which darkens white by 7 of 65,535 levels
    red, green, blue = values.split(1, dim=1)
    grey: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue
    return grey


@dataclass(frozen=True)
class _Range:
    """From an image's numbers to [0, 1] and back; a window's ends are its own black and white."""

    low: float
    high: float
    dtype: torch.dtype
    is_window: bool

    @classmethod
    def of(cls, numbers: Tensor, is_window: bool) -> "_Range":
        is_float = numbers.is_floating_point()
        if numbers.dtype == torch.uint8:
            return _BYTES
        if is_float and not numbers.isfinite().all():
            raise ValueError("the image holds NaN or infinite pixels.")
        wide = numbers if is_float else numbers.double()
        low, high = wide.min().item(), wide.max().item()
        if is_window or not is_float:
            # the next number that differs: 1 is lost beside the largest integers
            high = high if high > low else low + max(1.0, abs(low) * 2**-50)
            return cls(low, high, numbers.dtype, True)
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(
                f"a float image must lie in [0, 1], got values from {low:.3g} to {high:.3g}; "
                "divide images in [0, 255] by 255, and put DreamDAugment before Normalize.")
        return cls(0, 1, numbers.dtype, False)

    def to_values(self, numbers: Tensor) -> Tensor:
        scaled = (numbers.to(self._wide) - self.low) / (self.high - self.low)
        return scaled.clamp(0, 1).float()

    def to_numbers(self, values: Tensor) -> Tensor:
        numbers = values.to(self._wide) * (self.high - self.low) + self.low
        if not self.dtype.is_floating_point:
            limits = torch.iinfo(self.dtype)
            # the largest float64 that is an int64: what lies above would wrap
            numbers = numbers.round().clamp(limits.min, min(limits.max, 2**63 - 1024)).long()
        return numbers.to(self.dtype)

    def in_png(self, channels: int) -> "tuple[_Range, str]":
        """The numbers that a PNG file holds, and what it does not keep, as text."""
        if not self.is_window or channels == 3:
            return _BYTES, "" if self.dtype == torch.uint8 else "rounded to 8 bits"
        if not self.dtype.is_floating_point and self.low >= 0 and self.high <= 0xFFFF:
            return self, ""
        return _DEEP, "rescaled to 16 bits, from the darkest to the brightest pixel"

    @property
    def _wide(self) -> torch.dtype:
        # float32 has 24 bits: large integers would round up, past their type's maximum
        return torch.float64 if self.is_window else torch.float32


_BYTES, _DEEP = _Range(0, 255, torch.uint8, False), _Range(0, 0xFFFF, torch.int32, True)


def _pixels(
    numbers: Tensor, wrap: Callable[[Tensor], Any], *, is_window: bool = False,
    hashed: list[Tensor] | None = None,
    decorate: Callable[[PIL.Image.Image], PIL.Image.Image] = lambda png: png,
    is_png: bool = False, is_fixed: bool = False,
) -> Pixels:
    """Pixels of (B, C, H, W); ``wrap`` makes an image of such, ``decorate`` completes a PNG."""
    span = _Range.of(numbers, is_window)
    values, hashed = span.to_values(numbers), hashed or list(map(_as_bytes, numbers))
    is_exact = [each.dtype == torch.uint8 for each in hashed]
    for row, each in enumerate(hashed):
        if is_exact[row] and numbers.is_floating_point():
            values[row] = each.float() / 255

    png, loss = span.in_png(values.shape[1])

    def restore(new: Tensor) -> Any:
        return wrap(span.to_numbers(new))

    def store(new: Tensor) -> PIL.Image.Image:
        made = png.to_numbers(new)[0]
        return decorate(F.to_pil_image(made) if png is _BYTES else PIL.Image.fromarray(
            made[0].cpu().numpy().astype(np.uint16)))

    def load(stored: PIL.Image.Image) -> Any:
        if is_png:
            return stored
        return restore(png.to_values(_planes(stored) if png is _BYTES else torch.from_numpy(
            np.asarray(stored).astype(np.int32))[None, None]))

    return Pixels(
        values, [image_digest(each) for each in hashed], restore, store, load,
        "" if all(is_exact) else loss, has_8_bits=span.dtype == torch.uint8,
        is_fixed=is_png or is_fixed and not span.is_window)


def _read_tensor(image: Tensor) -> Pixels:
    if image.ndim not in (3, 4):
        raise ValueError(
            f"an image tensor must have shape (C, H, W) or (B, C, H, W), got {tuple(image.shape)}.")
    numbers = image.detach().as_subclass(Tensor)
    if image.device.type == "mps":
        numbers = numbers.cpu()  # Apple's GPUs have no float64
    numbers = numbers if image.ndim == 4 else numbers[None]
    batch, channels, height, width = numbers.shape
    check_size(width, height * min(batch, 1))
    if channels not in (1, 3):
        raise ValueError(f"an image tensor must have 1 or 3 channels, got {channels}.")
    if image.dtype == torch.bool or image.is_complex():
        raise ValueError(f"an image tensor must be integer or float, got {image.dtype}.")

    def wrap(made: Tensor) -> Tensor:
        made = (made if image.ndim == 4 else made[0]).to(image.device)
        if isinstance(image, tv_tensors.TVTensor):
            return tv_tensors.wrap(made, like=image)
        if type(image) not in (Tensor, torch.nn.Parameter):
            made = made.as_subclass(type(image))
            vars(made).update(vars(image))
        return made

    return _pixels(numbers, wrap, is_fixed=not vars(image))


def _as_bytes(numbers: Tensor) -> Tensor:
    """Floats that are multiples of 1/255 as uint8; other numbers as they are."""
    if not numbers.is_floating_point():
        return numbers
    wide = numbers.double() * 255
    rounded = wide.round()
    if numbers.dtype in (torch.float16, torch.bfloat16):
        exact = (rounded / 255).to(numbers.dtype) == numbers
    else:
        exact = (wide - rounded).abs() < 1e-4
    return rounded.to(torch.uint8) if exact.all() else numbers


def _read_array(array: np.ndarray[Any, Any]) -> Pixels:
    channels = channels_of(array)
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in channels:
        raise ValueError(
            f"an image array must have shape (H, W) or (H, W, C) with C one of {channels}, got "
            f"{array.shape}; a tensor has its channels first.")
    check_size(array.shape[1], array.shape[0])
    if array.dtype.kind not in "iuf":
        raise ValueError(f"an image array must be integer or float, got {array.dtype}.")
    if array.dtype == np.uint8:
        found = _read_pil(PIL.Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array))
    else:
        planes = np.ascontiguousarray(array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0))
        found = _read_tensor(torch.from_numpy(planes.astype(array.dtype.newbyteorder("="))))

    def as_array(made: PIL.Image.Image | Tensor) -> np.ndarray[Any, Any]:
        plain = np.moveaxis(made.numpy(), 0, -1) if isinstance(made, Tensor) else np.array(made)
        shape = plain.shape[:2] if array.ndim == 2 else (*plain.shape[:2], -1)
        return plain.reshape(shape).astype(array.dtype)

    return replace(found, restore=lambda new: as_array(found.restore(new)),
                   load=lambda stored: as_array(found.load(stored)))


def _read_pil(image: PIL.Image.Image) -> Pixels:
    """A PIL image of 8 bits."""
    mode, planes = image.mode, _planes(image)

    def wrap(numbers: Tensor) -> PIL.Image.Image:
        made: PIL.Image.Image = F.to_pil_image(numbers[0])
        if mode == "P" and image.getpalette():  # one that is made without, and all black, has none
            made = made.quantize(palette=image, dither=PIL.Image.Dither.NONE)
        elif mode in ("RGBA", "LA"):
            made.putalpha(image.getchannel("A"))
        elif made.mode != mode:
            made = made.convert(mode, dither=PIL.Image.Dither.NONE)
        return _with_info(made, image)

    def decorate(made: PIL.Image.Image) -> PIL.Image.Image:
        if mode in _TRANSPARENT or mode == "P" and "transparency" in image.info:
            made.putalpha(image.convert("RGBA").getchannel("A"))
        return _with_info(made, image)

    return _pixels(planes, wrap, decorate=decorate, is_png=mode in _OF_PNG)


def _read_deep(image: PIL.Image.Image) -> Pixels:
    """A PIL image of one channel of more than 8 bits."""
    array = np.asarray(image)
    numbers = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))[None, None]

    def wrap(made: Tensor) -> PIL.Image.Image:
        return _with_info(PIL.Image.fromarray(made[0, 0].cpu().numpy().astype(array.dtype)), image)

    # floats in a window are other images than the same floats in [0, 1]
    hashed = numbers[0, 0] if image.mode == "F" else numbers[0].float()
    return _pixels(numbers, wrap, is_window=True, hashed=[hashed],
                   decorate=lambda png: _with_info(png, image), is_png=image.mode in _OF_PNG)


def _planes(image: PIL.Image.Image) -> Tensor:
    """Bytes of an image of 8 bits, (1, C, H, W) uint8."""
    array = np.array(image.convert("L" if image.mode in ("L", "LA", "1") else "RGB"))
    planes = torch.from_numpy(array)
    return planes[None, None] if planes.ndim == 2 else planes.permute(2, 0, 1)[None]


def _with_info(made: PIL.Image.Image, like: PIL.Image.Image) -> PIL.Image.Image:
    """The image with colour profile, resolution and orientation of its seed image."""
    # pixels stay as they lie in the file; nothing else of EXIF is true of a synthetic image
    made.info.update({name: like.info[name] for name in _KEPT_INFO if name in like.info})
    if "CMYK" in (made.mode, like.mode) and made.mode != like.mode:
        made.info.pop("icc_profile", None)  # of other colours than the PNG's
    try:
        orientation = like.getexif().get(_ORIENTATION, 1)
    except UNREADABLE:  # a broken header is no reason to lose the image
        orientation = 1
    if orientation != 1:
        exif = PIL.Image.Exif()
        exif[_ORIENTATION] = orientation
        made.info["exif"] = exif.tobytes()
    if type(like) is not PIL.Image.Image and not isinstance(like, PIL.ImageFile.ImageFile):
        made.__class__ = type(like)  # as fastai's PILImage, which its transforms are chosen by
    return made
