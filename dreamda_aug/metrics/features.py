"""From images to features: what the metrics compare.

A feature function takes images (B, C, H, W), float in [0, 1], and returns (B, D). Any callable
will do; here are pixels, a classifier's penultimate layer, and Inception from a local file.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from dreamda_aug.arguments import checked, whole
from dreamda_aug.bundled import fashion_mnist_judge
from dreamda_aug.files import regular_file
from dreamda_aug.final_layer import FeatureReader, evaluation_mode, find_head
from dreamda_aug.inputs.dataset_reader import SizedDataset
from dreamda_aug.inputs.pixels import read_pixels
from dreamda_aug.progress import bar

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Images (B, C, H, W), float in [0, 1] -> features (B, D).
FeatureFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class _Features:
    """A feature function, which goes through pickle, and the call that makes it."""

    text: str
    function: FeatureFunction

    def __call__(self, images: Tensor) -> Tensor:
        return self.function(images)

    def __repr__(self) -> str:
        return self.text


def pixel_features(size: int | None = None) -> FeatureFunction:
    """The pixels themselves, flattened: D = C * H * W.

    Args:
        size: images are first resized to ``size`` x ``size``, or None to keep their size.
    """
    if size is not None:
        whole("size", size, 1)
    return _Features(f"pixel_features(size={size})", partial(_pixels, size))


@checked
def classifier_features(
    model: nn.Module, *, head: str | nn.Module | None = None, size: int | None = None,
    mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
) -> FeatureFunction:
    """Inputs of a classifier's final layer (torchvision, timm or your own).

    Each call uses the model in its current state, in evaluation mode, on its own device, and
    restores its modes and hooks. Grey images are repeated to 3 channels if the first convolution
    takes 3. Features with positions are averaged over them.

    Args:
        model: any module that classifies images.
        head: the final layer or its name, where it is not found automatically, as in
            ``AMSTWrapper``.
        size: images are resized to ``size`` x ``size``, or None to keep their size.
        mean: per channel, subtracted after resizing; give it together with ``std``.
        std: per channel, > 0, divided by.

    Raises:
        ValueError: the final layer is not found, or ``mean`` comes without ``std``.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std must be given together, got mean={mean} and std={std}.")
    reader = FeatureReader(model, head)
    reader.detach()
    normalize = nn.Identity() if mean is None else v2.Normalize(mean, std)
    return _Features(
        f"classifier_features({type(model).__name__}, head={reader.name!r}, size={size})",
        partial(_final_inputs, model, reader, size, normalize))


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
    path = regular_file(os.fspath(path))
    try:
        with warnings.catch_warnings():
            # The published file is TorchScript, so its deprecation is nothing a caller can act on.
            warnings.filterwarnings("ignore", message=".*torch.jit.load", append=False)
            network = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a TorchScript file, found something torch.jit.load cannot read "
            f"({str(error).splitlines()[0]}).") from error

    @torch.no_grad()
    def pooled(images: Tensor) -> Tensor:
        images = as_colour(images.to(device, torch.float32))
        # clamp: bicubic overshoots at edges, and the network was fed bytes.
        pixels = _resize(images, 299, "bicubic").clamp(0, 1) * 255
        return network((pixels - 128) / 128)

    return _Features(f"inception_features({path.name!r})", pooled)


def open_classifier_features(text: str) -> FeatureFunction:
    """The penultimate layer of a classifier on disk.

    Args:
        text: ``"bundled"``, the Fashion-MNIST judge of this package, which sees 28 grey pixels; or
            ``ARCHITECTURE:WEIGHTS.safetensors``, with an architecture of torchvision, or of timm
            where torchvision has none of that name; it sees 224 pixels, normalised as for ImageNet.

    Raises:
        ValueError: another text, no such architecture, or weights that do not fit it.
        FileNotFoundError: the file is not there; a StorageError where it is no regular file.
    """
    if text == "bundled":
        grey = v2.Lambda(lambda images: images.mean(1, keepdim=True))
        return classifier_features(nn.Sequential(grey, fashion_mnist_judge()), size=28)
    architecture, _, name = text.rpartition(":")
    if not architecture or not name.endswith(".safetensors"):
        raise ValueError(
            f"classifier must be bundled or ARCHITECTURE:WEIGHTS.safetensors, got {text!r}.")
    model = build_classifier(architecture, regular_file(name))
    return classifier_features(model, size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def build_classifier(architecture: str, path: Path) -> nn.Module:
    """A torchvision or timm classifier with the weights of a safetensors file, in eval mode.

    Raises:
        ValueError: there is no such architecture, or the weights do not fit it.
    """
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file: {error}.") from error
    with torch.device("meta"):  # shapes alone: the size of its final layer comes from the file
        name, _ = find_head(_create(architecture))
    weight = state.get(f"{name}.weight")
    model = _create(architecture, 1000 if weight is None else len(weight))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: expected weights of {architecture}: {reason}.") from error
    return model.eval()


def extract_features(
    images: SizedDataset | Iterable[Any], feature_fn: FeatureFunction, *, batch_size: int = 64,
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
    whole("batch_size", batch_size, 1)
    count = len(images) if isinstance(images, Sized) else None
    opened, found = iter(bar("features", count, "images", _open_all(images))), []
    while batch := list(islice(opened, batch_size)):
        # one by one where they differ in shape
        alike = len({image.shape for image in batch}) == 1
        for part in [torch.stack(batch)] if alike else [image[None] for image in batch]:
            features = feature_fn(part.to(device))
            if features.ndim != 2 or len(features) != len(part):
                raise ValueError(
                    f"feature_fn must return (B, D), got {tuple(features.shape)} for "
                    f"{len(part)} images; flatten or pool what it returns.")
            found.append(features.detach().cpu())
    widths = sorted({part.shape[1] for part in found})
    if not widths:
        raise ValueError("images must hold at least one image, got none.")
    if len(widths) > 1:
        raise ValueError(
            f"feature_fn must return equally many features for every image, got {widths[0]} and "
            f"{widths[1]}: the images differ in shape; give a size, as in "
            "pixel_features(size=32), and one number of channels.")
    return torch.cat(found)


def as_colour(images: Tensor) -> Tensor:
    """Grey images repeated to three channels; others as they are."""
    return images.expand(*images.shape[:-3], 3, -1, -1) if images.shape[-3] == 1 else images


def _pixels(size: int | None, images: Tensor) -> Tensor:
    return _resize(images, size).flatten(1)


@torch.no_grad()
def _final_inputs(
    model: nn.Module, reader: FeatureReader, size: int | None, normalize: nn.Module, images: Tensor
) -> Tensor:
    images = _resize(images, size).to(next(model.parameters()))
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    if first is not None and first.in_channels == 3:
        images = as_colour(images)
    try:
        with evaluation_mode(model):
            return reader.read(model, normalize(images))[0]
    finally:
        reader.detach()


def _open_all(images: SizedDataset | Iterable[Any]) -> Iterator[Tensor]:
    """Single images, (C, H, W) float in [0, 1]."""
    if isinstance(images, SizedDataset):
        # By index: many datasets never raise the IndexError that would end a plain for loop.
        images = map(images.__getitem__, range(len(images)))
    for item in images:
        yield from read_pixels(item[0] if isinstance(item, (tuple, list)) else item).values


def _resize(images: Tensor, size: int | None, mode: str = "bilinear") -> Tensor:
    if size is None or images.shape[-2:] == (size, size):
        return images
    return interpolate(images, (size, size), mode=mode, align_corners=False, antialias=True)


def _create(architecture: str, classes: int = 1000) -> nn.Module:
    from torchvision import models

    if architecture in models.list_models(models):
        return models.get_model(architecture, weights=None, num_classes=classes)
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"torchvision has no classifier {architecture!r}; for timm's: pip install "
                         "timm.") from error
    if not timm.is_model(architecture):
        raise ValueError(f"neither torchvision nor timm has a classifier {architecture!r}.")
    return timm.create_model(architecture, pretrained=False, num_classes=classes)
