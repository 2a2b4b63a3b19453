"""Bundled images and a small judge, for the demo and the tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Dataset

WEIGHTS = Path(__file__).parent / "weights"
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker",
           "Bag", "Ankle boot"]


class FashionMNISTSample(Dataset[tuple[Any, int]]):
    """A few hundred images of Fashion-MNIST (Xiao et al. 2017, MIT licence).

    Items are ``(PIL image of mode L and 28×28 pixels, label)``.

    Args:
        split: ``"train"`` for 20 images per class of the training split, which the bundled model
            was trained on; ``"test"`` for 30 per class of the test split, which it never saw.
        transform: of the image, as in torchvision.

    Attributes:
        data: (N, 28, 28) uint8.
        targets: N labels.
        classes: the ten class names.
    """

    classes = CLASSES
    class_to_idx = {name: index for index, name in enumerate(CLASSES)}

    def __init__(self, split: str = "test", transform: Callable[[Any], Any] | None = None):
        if split not in ("train", "test"):
            raise ValueError(f"split must be 'train' or 'test', got {split!r}.")
        tensors = load_file(WEIGHTS / "fashion_mnist_images.safetensors")
        self.split, self.transform = split, transform
        self.data = tensors[f"{split}_images"]
        self.targets = tensors[f"{split}_labels"].tolist()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = PIL.Image.fromarray(self.data[index].numpy())
        return self.transform(image) if self.transform else image, self.targets[index]


def build_judge() -> nn.Sequential:
    """The judge's network, untrained: (B, 1, 28, 28) in [0, 1] to logits (B, 10)."""
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
                nn.MaxPool2d(2)]

    return nn.Sequential(*block(1, 16), *block(16, 32), *block(32, 64), nn.Flatten(),
                         nn.Dropout(0.3), nn.Linear(64 * 3 * 3, 10))


def fashion_mnist_judge() -> nn.Sequential:
    """A classifier trained on Fashion-MNIST images that the bundled model has not seen.

    Images (B, 1, 28, 28) in [0, 1] to logits (B, 10). It measures label agreement in the demo and
    in studies. It has seen 30,000 labels, so it must never label images for training.

    Source: ``examples/train_judge.py``.
    """
    judge = build_judge()
    judge.load_state_dict(load_file(WEIGHTS / "fashion_mnist_judge.safetensors"))
    return judge.eval().requires_grad_(False)
