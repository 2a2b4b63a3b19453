"""Images of any kind to model pixels, and back to their own kind."""

import hashlib
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

Image = PIL.Image.Image | Tensor | np.ndarray[Any, Any]

# What Pillow raises for broken and hostile files.
UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, ArithmeticError,
              struct.error, zlib.error, PIL.Image.DecompressionBombError)


class ImageFormat(Protocol):
    """What images a model takes: ``channels`` of 1 or 3, ``image_size`` height and width."""

    @property
    def name(self) -> str: ...

    @property
    def channels(self) -> int: ...

    @property
    def image_size(self) -> tuple[int, int]: ...


# What of a PIL image's info belongs to its pixels, and so to a synthetic image's too.
_KEPT_INFO = ("exif", "icc_profile", "dpi", "gamma", "srgb", "transparency")


@dataclass(frozen=True)
class Pixels:
    """An image, or a batch of them, as floats, with the way back.

    Attributes:
        values: (B, C, H, W) float32 in [0, 1], C is 1 or 3.
        digests: one per image, of the original pixels.
        restore: from new values of the same shape to the original type, mode, dtype and device.
    """

    values: Tensor
    digests: list[str]
    restore: Callable[[Tensor], Image]


def read_pixels(image: Image) -> Pixels:
    """The pixels of a PIL image, of an image tensor or of an array.

    Args:
        image: PIL in any mode; a tensor (C, H, W) or (B, C, H, W) with 1 or 3 channels, uint8,
            another integer type, or float in [0, 1]; or a numpy array (H, W) or (H, W, C) of the
            same types, uint8 also with 4 channels, of which the last is transparency.

    Deeper than 8 bits (PIL's ``I;16``, ``I`` and ``F``, and integer tensors other than uint8), the
    range between an image's own darkest and brightest pixel is what the model sees, and the
    result is put back into it: medical images rarely use their type's full range.

    Raises:
        TypeError: it is no image.
        ValueError: its channels or its range do not fit, or it holds NaN.
    """
    if isinstance(image, PIL.Image.Image):
        return _read_pil(image)
    if isinstance(image, Tensor):
        return _read_tensor(image)
    if isinstance(image, np.ndarray):
        return _read_array(image)
    raise TypeError(
        f"an image must be a PIL image, a tensor or a numpy array, got {type(image).__name__}.")


def array_to_pil(array: np.ndarray[Any, Any]) -> PIL.Image.Image:
    """An array (H, W) or (H, W, C) of uint8, C = 1, 3 or 4, as a PIL image.

    Raises:
        ValueError: it is something else.
    """
    _check_array(array)
    if array.dtype != np.uint8:
        raise ValueError(f"an image array must hold uint8 to become a file, got {array.dtype}.")
    return PIL.Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def has_8_bits(image: Image) -> bool:
    """Whether an image that `read_pixels` takes tells no more than 256 levels apart."""
    if isinstance(image, PIL.Image.Image):
        return not image.mode.startswith(("I", "F"))
    return image.dtype in (torch.uint8, np.uint8)


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
            warnings.warn(
                f"{model.name} makes grey images: the colours of the seed images are lost. "
                "Use a model with 3 channels.", stacklevel=1,  # one place: it is said once
            )
        values = grey
    return _fit(values, model.channels, model.image_size)


def fit_back(values: Tensor, like: Tensor) -> Tensor:
    """Generated pixels (B, C, H, W) in the size, channels and device of the seed images."""
    _, channels, height, width = like.shape
    return _fit(values, channels, (height, width)).to(like.device)


def _fit(values: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    if channels == 1 and values.shape[1] == 3:
        values = _luminance(values)
    elif channels == 3 and values.shape[1] == 1:
        values = values.expand(-1, 3, -1, -1)
    if tuple(values.shape[2:]) != size:
        values = F.resize(values, list(size), antialias=True)
    return values.clamp(0, 1)


def _luminance(values: Tensor) -> Tensor:
    """Grey of RGB (B, 3, H, W), (B, 1, H, W).

    torchvision's weights add up to 0.9999, which darkens white by 7 of 65,535 levels.
    """
    red, green, blue = values.split(1, dim=1)
    grey: Tensor = 0.299 * red + 0.587 * green + 0.114 * blue
    return grey


def _read_tensor(image: Tensor) -> Pixels:
    if image.ndim not in (3, 4):
        raise ValueError(
            f"an image tensor must have shape (C, H, W) or (B, C, H, W), got {tuple(image.shape)}."
        )
    if image.numel() == 0:
        raise ValueError(f"an image must hold at least one pixel, got shape {tuple(image.shape)}.")
    batch = torch.Tensor(image) if type(image) is not Tensor else image
    batch = batch.detach() if image.ndim == 4 else batch.detach()[None]
    if batch.shape[1] not in (1, 3):
        raise ValueError(f"an image tensor must have 1 or 3 channels, got {batch.shape[1]}.")
    if image.dtype == torch.bool or image.is_complex():
        raise ValueError(f"an image tensor must be integer or float, got {image.dtype}.")
    digests = [image_digest(each) for each in batch]
    low, high, wide = 0.0, 255.0, torch.float32
    if image.is_floating_point():
        low, high = 0.0, 1.0
        if not batch.isfinite().all():
            raise ValueError("the image holds NaN or infinite pixels.")
        if (batch.min() < -1e-3 or batch.max() > 1 + 1e-3):
            raise ValueError(
                f"a float image must lie in [0, 1], got values from {batch.min().item():.3g} to "
                f"{batch.max().item():.3g}; put DreamDAugment before Normalize."
            )
    elif image.dtype != torch.uint8:
        # float32 has 24 bits: large integers would round up, past their type's maximum
        wide = torch.float64
        low, high = _window(batch.to(wide))
    values = ((batch.to(wide) - low) / (high - low)).clamp(0, 1).float()

    def restore(new: Tensor) -> Tensor:
        new = (new.to(wide) * (high - low) + low)
        if not image.is_floating_point():
            new = _to_integers(new, image.dtype)
        new = new.to(image.dtype)
        new = new.reshape(image.shape).to(image.device)
        return tv_tensors.wrap(new, like=image) if isinstance(image, tv_tensors.Image) else new

    return Pixels(values, digests, restore)


def channels_of(array: np.ndarray[Any, Any]) -> tuple[int, ...]:
    """The numbers of channels that an image array (H, W, C) of this type may have."""
    return (1, 3, 4) if array.dtype == np.uint8 else (1, 3)


def _check_array(array: np.ndarray[Any, Any]) -> None:
    channels = channels_of(array)
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[2] not in channels:
        raise ValueError(
            f"an image array must have shape (H, W) or (H, W, C) with C one of {channels}, got "
            f"{array.shape}; a tensor has its channels first."
        )
    if array.size == 0:
        raise ValueError(f"an image must hold at least one pixel, got shape {array.shape}.")


def _read_array(array: np.ndarray[Any, Any]) -> Pixels:
    _check_array(array)
    if array.dtype == np.uint8:
        found = _read_pil(array_to_pil(array))
        return Pixels(found.values, found.digests,
                      lambda new: np.array(found.restore(new)).reshape(array.shape))
    if array.dtype.kind not in "iuf":
        raise ValueError(f"an image array must be integer or float, got {array.dtype}.")
    planes = np.ascontiguousarray(array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0))
    found = _read_tensor(torch.from_numpy(planes.astype(array.dtype.newbyteorder("="))))

    def restore(new: Tensor) -> np.ndarray[Any, Any]:
        made = found.restore(new)
        assert isinstance(made, Tensor)
        return np.moveaxis(made.numpy(), 0, -1).reshape(array.shape).astype(array.dtype)

    return Pixels(found.values, found.digests, restore)


def _read_pil(image: PIL.Image.Image) -> Pixels:
    mode = image.mode
    if 0 in image.size:
        raise ValueError(f"an image must hold at least one pixel, got size {image.size}.")
    if mode.startswith(("I", "F")):
        array = torch.from_numpy(np.asarray(image).astype(np.float64))[None, None]
        if not array.isfinite().all():
            raise ValueError("the image holds NaN or infinite pixels.")
        low, high = _window(array)
        dtype = np.asarray(image).dtype

        def restore_deep(new: Tensor) -> PIL.Image.Image:
            values = (new.double() * (high - low) + low)[0, 0].numpy()
            if dtype.kind in "iu":
                values = values.round().clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
            return _with_info(PIL.Image.fromarray(values.astype(dtype)), image)

        digests = [image_digest(array[0].float())]
        return Pixels(((array - low) / (high - low)).float(), digests, restore_deep)

    work = image.convert("L" if mode in ("L", "LA", "1") else "RGB")
    array = torch.from_numpy(np.array(work))
    values = array[None, None] if array.ndim == 2 else array.permute(2, 0, 1)[None]

    def restore(new: Tensor) -> PIL.Image.Image:
        result: PIL.Image.Image = F.to_pil_image((new[0] * 255).round().to(torch.uint8))
        if mode == "P":
            if image.getpalette():
                result = result.quantize(palette=image, dither=PIL.Image.Dither.NONE)
            else:  # made without one, and all black
                result = result.convert("P")
        elif mode in ("RGBA", "LA"):
            result.putalpha(image.getchannel("A"))
        elif mode == "1":
            result = result.convert("1", dither=PIL.Image.Dither.NONE)
        elif result.mode != mode:
            result = result.convert(mode)
        return _with_info(result, image)

    return Pixels(values.float() / 255, [image_digest(values[0])], restore)


def _to_integers(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded float64 values within a type's range, as int64 where float64 would round up."""
    limits = torch.iinfo(dtype)
    rounded = values.round()
    # the largest int64 is no float64: what reaches it is set, not converted
    whole = rounded.clamp(limits.min, limits.max - 1023 if limits.bits == 64 else limits.max)
    integers = whole.to(torch.int64)
    return torch.where(rounded >= float(limits.max), limits.max, integers)


def _with_info(made: PIL.Image.Image, like: PIL.Image.Image) -> PIL.Image.Image:
    """The image with the orientation, colour profile and resolution of its seed image."""
    made.info.update({name: like.info[name] for name in _KEPT_INFO if name in like.info})
    return made


def _window(values: Tensor) -> tuple[float, float]:
    low, high = values.min().item(), values.max().item()
    # the next number that differs: 1 is lost beside the largest integers
    return low, high if high > low else low + max(1.0, abs(low) * 2**-50)
