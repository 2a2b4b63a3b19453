"""The classifiers of the accuracy study."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision import models
from torchvision.transforms import v2

from benchmarks.accuracy.tasks import Task


def small_cnn(task: Task, weights: Path | None) -> nn.Module:
    """GroupNorm: batch statistics of mixed weak, strong and synthetic images mislead."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU(),
                nn.MaxPool2d(2)]  # fmt: skip

    side = task.image_size // 8
    net = nn.Sequential(*block(task.channels, 16), *block(16, 32), *block(32, 64), nn.Flatten(),
                        nn.Dropout(0.2), nn.Linear(64 * side * side, task.classes))  # fmt: skip
    if weights is not None:
        net.load_state_dict(load_file(weights))
    return net


def resnet18(task: Task, weights: Path | None) -> nn.Module:
    """From scratch, for small images: a 3×3 stem, no first pooling, GroupNorm."""
    net = models.resnet18(num_classes=task.classes, norm_layer=lambda c: nn.GroupNorm(8, c))
    stride = 1 if task.image_size <= 32 else 2
    net.conv1 = nn.Conv2d(task.channels, 64, 3, stride, 1, bias=False)
    net.maxpool = nn.Identity()
    return net


def resnet18_pretrained(task: Task, weights: Path | None) -> nn.Module:
    """ImageNet's weights from a local file with torchvision's names, images enlarged twice."""
    if weights is None:
        raise SystemExit(f"{task.name} needs --weights FILE: torchvision's resnet18 of ImageNet.")
    net = models.resnet18()
    if weights.suffix == ".safetensors":
        net.load_state_dict(load_file(weights))
    else:
        net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    net.fc = nn.Linear(net.fc.in_features, task.classes)
    norm = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    larger = nn.Upsample(scale_factor=2, mode="bilinear")
    return nn.Sequential(norm, larger, net)


CLASSIFIERS: dict[str, Callable[[Task, Path | None], nn.Module]] = {
    builder.__name__: builder for builder in (small_cnn, resnet18, resnet18_pretrained)
}
