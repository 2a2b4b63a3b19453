"""Classifiers on disk, as the command line names them, as feature functions."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamda_aug.bundled import fashion_mnist_judge
from dreamda_aug.metrics.features import FeatureFunction, classifier_features

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def open_classifier_features(text: str) -> FeatureFunction:
    """The penultimate layer of a classifier on disk.

    Args:
        text: ``"bundled"``, the Fashion-MNIST judge of this package, which sees 28 grey pixels; or
            ``ARCHITECTURE:WEIGHTS.safetensors``, with an architecture of torchvision, or of timm
            where torchvision has none of that name; it sees 224 pixels, normalised as for ImageNet.

    Raises:
        ValueError: another text, no such architecture, or weights that do not fit it.
        FileNotFoundError: the file is not there.
    """
    if text == "bundled":
        judge = nn.Sequential(_Grey(), fashion_mnist_judge())
        return classifier_features(judge, size=28)
    architecture, colon, name = text.rpartition(":")
    path = Path(name)
    if not architecture or path.suffix != ".safetensors":
        raise ValueError(
            f"classifier must be bundled or ARCHITECTURE:WEIGHTS.safetensors, got {text!r}."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a classifier's weights, found nothing.")
    model = build_classifier(architecture, path)
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
        heads = [name for name, part in _create(architecture).named_modules()
                 if isinstance(part, nn.Linear | nn.Conv2d)]
    weight = state.get(f"{heads[-1]}.weight") if heads else None
    model = _create(architecture) if weight is None else _create(architecture, len(weight))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: expected weights of {architecture}: {reason}.") from error
    return model.eval()


def _create(architecture: str, classes: int = 1000) -> nn.Module:
    from torchvision import models

    if architecture in models.list_models(models):
        model: nn.Module = models.get_model(architecture, weights=None, num_classes=classes)
        return model
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"torchvision has no classifier {architecture!r}; for timm's: pip install timm."
        ) from error
    if not timm.is_model(architecture):
        raise ValueError(f"neither torchvision nor timm has a classifier {architecture!r}.")
    return timm.create_model(architecture, pretrained=False, num_classes=classes)


class _Grey(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean(1, keepdim=True)
