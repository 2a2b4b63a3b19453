"""From images to features: what the metrics compare.

A feature function takes images (B, C, H, W), float in [0, 1], and returns (B, D). Any callable
will do; three are here: pixels, a classifier's penultimate layer, and Inception from a local file.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from dreamda_aug.inputs.pixels import read_pixels
from dreamda_aug.progress import track


class FeatureFunction(Protocol):
    """Images (B, C, H, W), float in [0, 1] -> features (B, D)."""

    def __call__(self, images: Tensor) -> Tensor: ...


@runtime_checkable
class Indexed(Protocol):
    """Items by index, and how many there are: a tensor, a list, a map-style dataset."""

    def __getitem__(self, index: int, /) -> Any: ...

    def __len__(self) -> int: ...


def pixel_features(size: int | None = None) -> FeatureFunction:
    """The pixels themselves, flattened: D = C * H * W.

    Args:
        size: images are first resized to ``size`` x ``size``, or None to keep their size.
    """
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1, got {size}; None keeps the image's own size.")
    return _Pixels(size)


def classifier_features(
    model: nn.Module,
    *,
    layer: str | None = None,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> FeatureFunction:
    """Inputs of a classifier's final linear layer (torchvision, timm or your own).

    Each call uses the model in its current state, in evaluation mode, on its own device, and
    restores its modes and hooks. Grey images are repeated to 3 channels if the first convolution
    takes 3.

    Args:
        model: any module that classifies images.
        layer: dotted name of the final layer, or None to take the last ``nn.Linear``. Inputs
            (B, D, H, W) of a convolution used as the final layer are averaged over H and W.
        size: images are resized to ``size`` x ``size``, or None to keep their size.
        mean: per channel, subtracted after resizing; give it together with ``std``.
        std: per channel, > 0, divided by.
    """
    if layer is None:
        linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
        if not linear:
            raise ValueError(
                f"model must hold an nn.Linear, got a {type(model).__name__} without one; "
                'name its final layer, as in classifier_features(model, layer="classifier").'
            )
        layer = linear[-1]
    elif layer not in dict(model.named_modules()):
        names = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"layer must name a part of model, got {layer!r}; at its top: {names}.")
    if mean is None and std is None:
        return _Classifier(model, layer, size, None)
    if mean is None or std is None or len(mean) != len(std) or min(std) <= 0:
        raise ValueError(
            "mean and std must be given together and be equally long, std above 0, got "
            f"mean={mean} and std={std}."
        )
    return _Classifier(model, layer, size, v2.Normalize(mean, std))


def inception_features(
    path: str | os.PathLike[str], *, device: str | torch.device = "cpu"
) -> FeatureFunction:
    """Inception's 2,048 pooled features, the ones that FID and KID are defined on.

    Images are resized to 299 x 299 (bicubic, antialiased: arXiv:2104.11222 shows why that matters),
    repeated to 3 channels if grey, and scaled as (x - 128) / 128 with x in [0, 255].

    Args:
        path: a TorchScript file of that network that takes such a tensor and returns (B, 2048).
            Running a TorchScript file runs its author's code: use one you trust.
        device: where the network runs.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a TorchScript file of the FID Inception network, found "
            f"{'a folder' if path.is_dir() else 'nothing'}; use pixel_features() or "
            "classifier_features(model) if you have none."
        )
    try:
        with warnings.catch_warnings():
            # The published file is TorchScript, so its deprecation is nothing a caller can act on.
            warnings.filterwarnings("ignore", message=".*torch.jit.load", append=False)
            network = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a TorchScript file, found something torch.jit.load cannot read "
            f"({str(error).splitlines()[0]})."
        ) from error
    return _Inception(network, torch.device(device), path)


def extract_features(
    images: Indexed | Iterable[Any],
    feature_fn: FeatureFunction,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Features of many images, one batch at a time, (N, D) on the CPU, in the images' order.

    Args:
        images: a tensor (N, C, H, W), a dataset, a DataLoader or any iterable. Items are what
            `dreamda_aug.inputs.pixels.read_pixels` takes, batches included, or tuples that begin
            with one. Sizes may differ if ``feature_fn`` resizes.
        feature_fn: images (B, C, H, W), float in [0, 1] -> (B, D).
        batch_size: images per call of it, at least 1.
        device: where the images are put before the call.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    found, batch = [], []
    count = len(images) if isinstance(images, Sized) else None
    for image in track(_images(images), "features", count, "images"):
        batch.append(image)
        if len(batch) == batch_size:
            found.append(_batch_features(batch, feature_fn, device))
            batch = []
    if batch:
        found.append(_batch_features(batch, feature_fn, device))
    if not found:
        raise ValueError("images must hold at least one image, got none.")
    return _joined(found)


@dataclass(frozen=True)
class _Pixels:
    size: int | None

    def __call__(self, images: Tensor) -> Tensor:
        return _resize(images, self.size).flatten(1)

    def __repr__(self) -> str:
        return f"pixel_features(size={self.size})"


@dataclass(frozen=True, eq=False)
class _Classifier:
    model: nn.Module
    layer: str
    size: int | None
    normalize: nn.Module | None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        images = _resize(images, self.size).to(next(self.model.parameters()))
        convolutions = [part for part in self.model.modules() if isinstance(part, nn.Conv2d)]
        if convolutions and convolutions[0].in_channels == 3:
            images = as_colour(images)
        if self.normalize is not None:
            images = self.normalize(images)
        seen: list[Tensor] = []
        hook = self.model.get_submodule(self.layer).register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0]))
        try:
            with _evaluating(self.model):
                self.model(images)
        finally:
            hook.remove()
        if not seen:
            raise RuntimeError(
                f"layer {self.layer!r} took no part in model's forward pass (or the model was "
                "compiled before); name the layer that does, or pass the uncompiled model."
            )
        features = seen[-1]
        features = features.mean((2, 3)) if features.ndim == 4 else features
        if features.ndim != 2 or len(features) != len(images):
            raise ValueError(
                f"layer {self.layer!r} must take (B, D), got {tuple(features.shape)} for "
                f"{len(images)} images; name the layer after pooling."
            )
        return features

    def __repr__(self) -> str:
        return (f"classifier_features({type(self.model).__name__}, layer={self.layer!r}, "
                f"size={self.size})")


@dataclass(frozen=True, eq=False)
class _Inception:
    network: torch.jit.ScriptModule
    device: torch.device
    path: Path

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        images = as_colour(images.to(self.device, torch.float32))
        # clamp: bicubic overshoots at edges, and the network was fed bytes.
        pixels = _resize(images, 299, "bicubic").clamp(0, 1) * 255
        features: Tensor = self.network((pixels - 128) / 128)
        return features

    def __repr__(self) -> str:
        return f"inception_features({self.path.name!r})"


def _images(images: Indexed | Iterable[Any]) -> Iterator[Tensor]:
    """Single images, (C, H, W) float in [0, 1]."""
    if isinstance(images, Indexed):
        # By index: many datasets never raise the IndexError that would end a plain for loop.
        images = map(images.__getitem__, range(len(images)))
    for item in images:
        yield from read_pixels(item[0] if isinstance(item, (tuple, list)) else item).values


def as_colour(images: Tensor) -> Tensor:
    """Grey images repeated to three channels; others as they are."""
    return images.expand(*images.shape[:-3], 3, -1, -1) if images.shape[-3] == 1 else images


def _batch_features(
    batch: list[Tensor], feature_fn: FeatureFunction, device: str | torch.device
) -> Tensor:
    """Features (B, D) of images, one by one where they differ in shape."""
    alike = len({image.shape for image in batch}) == 1
    found = []
    for part in [torch.stack(batch)] if alike else [image[None] for image in batch]:
        features = feature_fn(part.to(device))
        if features.ndim != 2 or len(features) != len(part):
            raise ValueError(
                f"feature_fn must return (B, D), got {tuple(features.shape)} for "
                f"{len(part)} images; flatten or pool what it returns."
            )
        found.append(features.detach().cpu())
    return _joined(found)


def _joined(parts: list[Tensor]) -> Tensor:
    """All rows below each other, if they are equally wide."""
    widths = [part.shape[1] for part in parts]
    if len(set(widths)) > 1:
        raise ValueError(
            f"feature_fn must return equally many features for every image, got {widths[0]} and "
            f"{next(width for width in widths if width != widths[0])}: the images differ in shape; "
            "give a size, as in pixel_features(size=32), and one number of channels."
        )
    return torch.cat(parts)


def _resize(images: Tensor, size: int | None, mode: str = "bilinear") -> Tensor:
    if size is None or images.shape[-2:] == (size, size):
        return images
    return interpolate(images, (size, size), mode=mode, align_corners=False, antialias=True)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each part's own mode again (some may have been frozen)."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
