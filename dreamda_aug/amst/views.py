"""The weak and the strong view; every image of a batch gets its own random draw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from dreamda_aug.arguments import check_fields, real, whole

View = Callable[[Tensor], Tensor]
# RandAugment's magnitudes are numbered from 0 to this.
_STRONGEST = 30


@dataclass(frozen=True)
class PerImage:
    """One of torchvision's transforms as a view, in which each image has a draw of its own.

    Attributes:
        transform: takes and returns uint8 images (N, C, H, W), which share its draws.
        group: number of images that share a draw after all, to save time, ≥ 1.
    """

    transform: nn.Module
    group: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        whole("group", self.group, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> the same, with 8 bits per pixel."""
        parts = (images * 255).round().to(torch.uint8).split(self.group)
        return torch.cat([self.transform(part) for part in parts]).to(images) / 255


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
        check_fields(self)
        real("flip", self.flip, "lie in [0, 1]", 0, 1)
        real("padding", self.padding, "lie in [0, 0.5]", 0, 0.5)

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) float of any range -> the same shape and type."""
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError("images must be a float tensor (N, C, H, W), got "
                             f"{images.dtype} of shape {tuple(images.shape)}.")
        count, _, height, width = images.shape
        pad_y, pad_x = round(height * self.padding), round(width * self.padding)
        padded = F.pad(images, (pad_x, pad_x, pad_y, pad_y), mode="reflect")
        # One gather for the whole batch: torchvision's flip and crop, image by image, take ten
        # times as long. Drawn on the CPU, so that every device has the same draws.
        rows = torch.randint(2 * pad_y + 1, (count, 1)) + torch.arange(height)
        left = torch.randint(2 * pad_x + 1, (count, 1))
        columns = torch.arange(width).expand(count, width)
        columns = left + torch.where(torch.rand(count, 1) < self.flip, columns.flip(1), columns)
        chosen = torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
        view = padded.permute(0, 2, 3, 1)[tuple(each.to(images.device) for each in chosen)]
        return view.permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class StrongView:
    """The weak view, then RandAugment, then Cutout.

    Attributes:
        weak: the view to start from.
        operations: number of RandAugment's operations per image, ≥ 0.
        magnitude: largest strength, in [0, 1]; each image draws its own from U(0, ``magnitude``),
            and 1 is RandAugment's full range.
        cutout: largest side of the square that is painted grey, as a share of the image's side,
            in [0, 1].
        mean, std: the normalisation of the images, one value per channel, or None where they are
            not normalised. It is undone before the view is drawn and redone after, because the
            colour operations need pixels in [0, 1].

    Source: FixMatch, arXiv:2001.07685, section 2.3; RandAugment, arXiv:1909.13719; Cutout,
    arXiv:1708.04552; the operations are torchvision's.
    """

    weak: WeakView = field(default_factory=WeakView)
    operations: int = 2
    magnitude: float = 1.0
    cutout: float = 0.5
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        whole("operations", self.operations, 0)
        real("magnitude", self.magnitude, "lie in [0, 1]", 0, 1)
        real("cutout", self.cutout, "lie in [0, 1]", 0, 1)
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together: StrongView(mean=…, std=…).")

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 1 or 3, H, W) float -> the same shape and type.

        Raises:
            ValueError: other channels, or pixels outside [0, 1] before normalisation.
        """
        view = self.weak(images)
        if images.shape[1] not in (1, 3):
            raise ValueError(
                f"images must have 1 or 3 channels for the strong view, got {images.shape[1]}; "
                "give a view of your own: AMSTWrapper(model, strong=…).")
        shift, scale = (
            torch.tensor(values, dtype=torch.float32, device=images.device)[:, None, None]
            for values in (self.mean or (0.0,), self.std or (1.0,)))
        view = view.float() * scale + shift
        if not (view.min() > -0.02 and view.max() < 1.02):
            raise ValueError(
                "images must lie in [0, 1] for the strong view, got "
                f"[{view.min():.3g}, {view.max():.3g}]. If they are normalised, state the "
                "normalisation: AMSTWrapper(model, strong=StrongView(mean=…, std=…)).")
        view = self._augment(view.clamp(0, 1))
        return ((view - shift) / scale).to(images.dtype)

    @cached_property
    def _augment(self) -> PerImage:
        strengths = range(round(_STRONGEST * self.magnitude) + 1)
        return PerImage(v2.Compose([
            v2.RandomChoice([v2.RandAugment(self.operations, each) for each in strengths]),
            v2.RandomErasing(1.0, scale=(0.0, self.cutout**2), ratio=(1.0, 1.0), value=127),
        ]))


@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch leaves it without types
def apply_view(view: View, images: Tensor) -> Tensor:
    """One view of a batch, outside compiled graphs."""
    return view(images)
