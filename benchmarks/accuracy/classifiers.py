"""The classifiers of the accuracy study."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
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


class Frozen(nn.Module):
    """A linear layer on the features of a network that stays as it is, images enlarged twice."""

    def __init__(self, body: nn.Module, width: int, classes: int):
        super().__init__()
        self.body, self.head = body.eval().requires_grad_(False), nn.Linear(width, classes)
        self.norm = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        larger = F.interpolate(images.expand(-1, 3, -1, -1), scale_factor=2, mode="bilinear")
        return self.head(self.body(self.norm(larger)).flatten(1))


def frozen(task: Task, weights: Path | None) -> nn.Module:
    """ImageNet's ResNet-18 or MobileNetV2 from a local file with torchvision's names, frozen."""
    if weights is None:
        raise SystemExit("frozen features need --weights FILE: torchvision's resnet18 or "
                         "mobilenet_v2 of ImageNet.")
    if weights.suffix == ".safetensors":
        state = load_file(weights)
    else:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    net = models.resnet18() if "fc.weight" in state else models.mobilenet_v2()
    net.load_state_dict(state)
    if "fc.weight" in state:
        return Frozen(nn.Sequential(*list(net.children())[:-1]), 512, task.classes)
    return Frozen(nn.Sequential(net.features, nn.AdaptiveAvgPool2d(1)), 1280, task.classes)


CLASSIFIERS: dict[str, Callable[[Task, Path | None], nn.Module]] = {
    builder.__name__: builder for builder in (small_cnn, resnet18, frozen)
}
