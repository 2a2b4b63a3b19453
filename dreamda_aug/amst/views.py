"""The weak and the strong view; every image of a batch gets its own random draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

View = Callable[[Tensor], Tensor]

# The fourteen operations of RandAugment, and the largest strength of each, as in torchvision: for
# translations a share of the side, for rotations degrees.
_OPERATIONS = {
    "identity": 0.0,
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 0.3,
    "translate_y": 0.3,
    "rotate": 30.0,
    "brightness": 0.9,
    "color": 0.9,
    "contrast": 0.9,
    "sharpness": 0.9,
    "posterize": 4.0,
    "solarize": 1.0,
    "autocontrast": 0.0,
    "equalize": 0.0,
}
_SIGNED = frozenset(list(_OPERATIONS)[1:10])


@dataclass(frozen=True)
class WeakView:
    """Horizontal flip and padded crop; the padding grows with the image.

    Attributes:
        flip: probability of a mirrored image, in [0, 1]; 0 for digits, letters and the like.
        padding: largest shift, as a share of the image's side, in [0, 0.5].

    Source: FixMatch, arXiv:2001.07685, section 2.3: flip at 50 %, translation up to 12.5 %.
    """

    flip: float = 0.5
    padding: float = 0.125

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must lie in [0, 1], got {self.flip}.")
        if not 0 <= self.padding <= 0.5:
            raise ValueError(f"padding must lie in [0, 0.5], got {self.padding}.")

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, C, H, W) float of any range -> the same shape, type and memory format.

        ``generator`` is a CPU generator; None draws from torch's global one.
        """
        _check_images(images)
        count, _, height, width = images.shape
        pad_y, pad_x = round(height * self.padding), round(width * self.padding)
        padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y), mode="reflect")
        top = torch.randint(2 * pad_y + 1, (count, 1), generator=generator)
        left = torch.randint(2 * pad_x + 1, (count, 1), generator=generator)
        flipped = torch.rand(count, 1, generator=generator) < self.flip
        rows = top + torch.arange(height)
        columns = torch.arange(width).expand(count, width)
        columns = left + torch.where(flipped, columns.flip(1), columns)
        # The same draws on every device: made on the CPU, then moved.
        rows, columns = rows.to(images.device), columns.to(images.device)
        batch = torch.arange(count, device=images.device)[:, None, None]
        view = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
        return _like(view.permute(0, 3, 1, 2), images)


@dataclass(frozen=True)
class StrongView:
    """The weak view, then RandAugment, then Cutout.

    Every image draws its own operations. Images that drew the same operation in the same round
    share its strength, so that ``torchvision.transforms.v2.functional`` can transform them
    together. The strength is drawn from U(0, ``magnitude``) at every call.

    Attributes:
        weak: the view to start from.
        operations: number of operations per image, ≥ 0.
        magnitude: largest strength, in [0, 1]; 1 is RandAugment's full range.
        cutout: largest side of the square that is painted grey, as a share of the image's side,
            in [0, 1].
        mean, std: the normalisation of the images, one value per channel; None: they are not
            normalised. It is undone before the view is drawn and redone after, because the
            colour operations need pixels in [0, 1].

    Source: FixMatch, arXiv:2001.07685, section 2.3; RandAugment, arXiv:1909.13719; Cutout,
    arXiv:1708.04552. Sharing a strength among images is ours.
    """

    weak: WeakView = field(default_factory=WeakView)
    operations: int = 2
    magnitude: float = 1.0
    cutout: float = 0.5
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.operations < 0:
            raise ValueError(f"operations must be ≥ 0, got {self.operations}.")
        for name in ("magnitude", "cutout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together: StrongView(mean=…, std=…).")

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """(N, C, H, W) float -> the same shape, type and memory format.

        C must be 1 or 3, and the range [0, 1] after the normalisation is undone. ``generator``
        is a CPU generator; None draws from torch's global one.

        Raises:
            ValueError: other channels or another range.
        """
        _check_images(images)
        if images.shape[1] not in (1, 3):
            raise ValueError(
                f"StrongView takes images with 1 or 3 channels, got {images.shape[1]}; give the "
                "wrapper a view of your own: AMSTWrapper(model, strong=…)."
            )
        view = self._denormalise(self.weak(images, generator).float())
        for _ in range(self.operations):
            view = _rand_augment(view, self.magnitude, generator)
        view = _cutout(view, self.cutout, generator)
        return _like(self._normalise(view), images)

    def _denormalise(self, images: Tensor) -> Tensor:
        if self.mean is not None and self.std is not None:
            images = images * _per_channel(self.std, images) + _per_channel(self.mean, images)
        if len(images) and not (images.min() > -0.02 and images.max() < 1.02):
            raise ValueError(
                "images must lie in [0, 1] for the strong view, got "
                f"[{images.min():.3g}, {images.max():.3g}]. If they are normalised, state the "
                "normalisation: AMSTWrapper(model, strong=StrongView(mean=…, std=…))."
            )
        return images.clamp(0, 1)

    def _normalise(self, images: Tensor) -> Tensor:
        if self.mean is None or self.std is None:
            return images
        return (images - _per_channel(self.mean, images)) / _per_channel(self.std, images)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it without types
def apply_view(name: str, view: View, images: Tensor) -> Tensor:
    """One view of a batch; an empty batch is returned unchanged.

    Raises:
        ValueError: the view returned something other than a batch of as many images and channels.
    """
    made = view(images) if len(images) else images
    if not isinstance(made, Tensor) or made.shape[:2] != images.shape[:2]:
        found = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise ValueError(
            f"the {name} view must return a batch like the one it got, "
            f"{tuple(images.shape)}, got {found}."
        )
    return made


def _rand_augment(images: Tensor, magnitude: float, generator: torch.Generator | None) -> Tensor:
    """One random operation per image, on images in [0, 1]."""
    chosen = torch.randint(len(_OPERATIONS), (len(images),), generator=generator)
    negative = torch.rand(len(images), generator=generator) < 0.5
    strengths = torch.rand(len(_OPERATIONS), generator=generator) * magnitude
    result = images.clone()
    for number, (name, largest) in enumerate(_OPERATIONS.items()):
        strength = strengths[number].item() * largest
        for sign in (1, -1):
            rows = chosen == number
            if name in _SIGNED:
                rows = rows & (negative == (sign < 0))
            elif sign < 0:
                continue
            index = rows.nonzero().squeeze(1).to(images.device)
            if len(index):
                result[index] = _apply(images[index], name, sign * strength)
    return result


def _apply(images: Tensor, name: str, strength: float) -> Tensor:
    # torchvision's functions have no types.
    return cast(Tensor, _transform(images, name, strength))


def _transform(images: Tensor, name: str, strength: float) -> object:
    from torchvision.transforms.v2 import functional as transforms

    height, width = images.shape[-2:]
    match name:
        case "shear_x" | "shear_y" | "translate_x" | "translate_y" | "rotate":
            # affine's shear is an angle; RandAugment's strength is its tangent.
            angle = torch.tensor(strength).atan().rad2deg().item()
            return transforms.affine(
                images,
                angle=strength if name == "rotate" else 0.0,
                translate=[
                    round(strength * width) if name == "translate_x" else 0,
                    round(strength * height) if name == "translate_y" else 0,
                ],
                scale=1.0,
                shear=[
                    angle if name == "shear_x" else 0.0,
                    angle if name == "shear_y" else 0.0,
                ],
            )
        case "brightness":
            return transforms.adjust_brightness(images, 1 + strength)
        case "color":
            return transforms.adjust_saturation(images, 1 + strength)
        case "contrast":
            return transforms.adjust_contrast(images, 1 + strength)
        case "sharpness":
            return transforms.adjust_sharpness(images, 1 + strength)
        case "posterize":
            # all eight bits are kept; torchvision would still round the image down.
            bits = 8 - round(strength)
            return images if bits == 8 else transforms.posterize(images, bits)
        case "solarize":
            return transforms.solarize(images, 1 - strength)
        case "autocontrast":
            return transforms.autocontrast(images)
        case "equalize":
            return transforms.equalize(images)
        case _:
            return images


def _cutout(images: Tensor, largest: float, generator: torch.Generator | None) -> Tensor:
    """A grey square per image, its side drawn from U(0, ``largest``), its centre anywhere."""
    count, _, height, width = images.shape
    draws = torch.rand(count, 3, 1, generator=generator)
    side = draws[:, 0] * largest
    distance_y = (torch.arange(height) + 0.5) / height - draws[:, 1]
    distance_x = (torch.arange(width) + 0.5) / width - draws[:, 2]
    inside = (distance_y.abs() < side / 2)[:, :, None] & (distance_x.abs() < side / 2)[:, None, :]
    return images.masked_fill(inside[:, None].to(images.device), 0.5)


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        found = (
            f"{images.dtype} of shape {tuple(images.shape)}"
            if isinstance(images, Tensor)
            else type(images).__name__
        )
        raise ValueError(f"images must be a float tensor (N, C, H, W), got {found}.")


def _per_channel(values: Sequence[float], images: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=images.dtype, device=images.device).view(-1, 1, 1)


def _like(view: Tensor, images: Tensor) -> Tensor:
    view = view.to(images.dtype)
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    if channels_last and not images.is_contiguous():
        return view.contiguous(memory_format=torch.channels_last)
    return view.contiguous()
