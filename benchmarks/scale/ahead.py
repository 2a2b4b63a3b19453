"""Training on fresh images from a process beside it, against training on files."""

import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import models
from torchvision.transforms import v2

from dreamda_aug import AugmentedDataset, Synthesizer, expand
from dreamda_aug.bundled import FashionMNISTSample

BATCH_SIZE = 32


def measure_ahead(
    images: int, ratio: int, epochs: int, limit: int | None = None
) -> dict[str, Any]:
    """Train epochs on files, on images made ahead, and on files again; clock time of each epoch.

    The classifier trains with one thread, and the process beside it makes images with another:
    on a machine with fewer than two free cores, this measures the lack of them.

    Args:
        images: seed images, of the bundled ones.
        ratio: synthetic images of each.
        epochs: of each part that count; the first of each dataset warms up.
        limit: batches per epoch; None: all.

    Returns:
        Times, the ratio of their medians, and what was served.
    """
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    # over all classes
    data = Subset(FashionMNISTSample("train", transform), range(0, 200, 200 // images))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is calibrated here
        options = {"preset": "fast", "cache": Path(folder) / "cache", "device": "cpu"}
        expand(data, Path(folder) / "files", Synthesizer(**options), ratio)
        stored = AugmentedDataset.from_folder(data, Path(folder) / "files", transform=transform)
        before = [_epoch(stored, limit) for _ in range(epochs + 1)][1:]  # the first one warms up
        fresh = AugmentedDataset(data, Synthesizer(**options), ratio, transform=transform,
                                 prefetch_epochs=2)
        fresh.wait()
        beside = []
        for epoch in range(epochs + 1):
            fresh.set_epoch(epoch)
            beside.append(_epoch(fresh, limit))
        told = str(fresh.freshness)
        fresh.close()
        after = [_epoch(stored, limit) for _ in range(epochs)]
    files = median(before + after)
    return {"seed_images": len(data), "ratio": ratio, "batch_size": BATCH_SIZE,
            "classifier": "resnet18, 28x28, one thread", "seconds_on_files": [*before, *after],
            "seconds_ahead": beside, "throughput": files / median(beside[1:]), "freshness": told}


def _epoch(data: Dataset[Any], limit: int | None) -> float:
    """Seconds of one epoch of training."""
    torch.manual_seed(0)
    model = models.resnet18(num_classes=10)
    model.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    started = time.perf_counter()
    for number, (images, labels) in enumerate(DataLoader(data, BATCH_SIZE, shuffle=True)):
        if number == limit:
            break
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started
