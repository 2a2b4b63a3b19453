"""Batches that mix real, accepted and unlabeled images at a stated ratio."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dreamda_aug.inputs.dataset_reader import SizedDataset
from dreamda_aug.inputs.samples import class_number, plain_label


@runtime_checkable
class BatchedDataset(Protocol):
    """A dataset that makes several items at once, as torch's DataLoader supports it."""

    def __getitems__(self, indices: list[int], /) -> Sequence[Any]: ...


@runtime_checkable
class EpochDataset(Protocol):
    """A dataset whose items change from epoch to epoch."""

    def set_epoch(self, epoch: int, /) -> Any: ...


@dataclass(frozen=True)
class MixedBatch:
    """One training batch.

    Attributes:
        real: labeled images, (N, C, H, W); (0,) if there are none.
        targets: labels of ``real``, (N,) int64 or (N, classes) float.
        synthetic: images from the pool, (M, C, H, W); accepted ones first; (0,) if there are none.
        indices: positions of ``synthetic`` in the pool, (M,) int64.
        seed_labels: seed labels of ``synthetic``, (M,) int64; −1 where the pool has none.
    """

    real: Tensor
    targets: Tensor
    synthetic: Tensor
    indices: Tensor
    seed_labels: Tensor

    def to(self, device: torch.device | str) -> MixedBatch:
        """The same on another device."""
        return MixedBatch(*(value.to(device) for value in vars(self).values()))


def mixed_batches(
    labeled: int, accepted: Sequence[int] | Tensor, unlabeled: Sequence[int] | Tensor, *,
    batch_size: int, ratio: tuple[float, float, float] = (1, 1, 1), steps: int,
    rng_seed: int = 0,
) -> list[list[int]]:
    """Index lists that mix three sources at a fixed ratio, each source reshuffled when it ends.

    Indices below ``labeled`` point into the labeled set, ``labeled + i`` to image i of the pool.

    Args:
        labeled: number of labeled images, at least one.
        accepted, unlabeled: indices into the pool.
        batch_size: images per batch, ≥ 2.
        ratio: real : accepted : unlabeled, three numbers ≥ 0, the first > 0. Where one of the last
            two sources is empty, the other takes its place.
        steps: number of batches, ≥ 1.
        rng_seed: the whole sequence depends on it alone.
    """
    sources = [torch.arange(labeled), *(labeled + torch.as_tensor(each, dtype=torch.int64)
                                        for each in (accepted, unlabeled))]
    generator = torch.Generator().manual_seed(rng_seed)

    def endless(source: Tensor) -> Iterator[int]:
        while True:
            yield from source[torch.randperm(len(source), generator=generator)].tolist()

    streams, sizes = [endless(source) for source in sources], [len(source) for source in sources]
    counts = batch_counts(batch_size, ratio, sizes)
    return [[next(stream) for stream, count in zip(streams, counts) for _ in range(count)]
            for _ in range(steps)]


def batch_counts(
    batch_size: int, ratio: tuple[float, float, float], sizes: Sequence[int]
) -> list[int]:
    """How many images of each source, of these sizes, make up a batch; at least one is real."""
    real, *others = ratio
    if not all(sizes[1:]):
        others = [sum(others) if size else 0 for size in sizes[1:]]
    parts = [real, *others]
    shares = [batch_size * part / sum(parts) for part in parts]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(3), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: batch_size - sum(counts)]:
        counts[i] += 1
    if counts[0] == 0:
        largest = max(range(3), key=lambda i: counts[i])
        counts[0], counts[largest] = 1, counts[largest] - 1
    return counts


@dataclass(frozen=True)
class MixedImages(Dataset[MixedBatch]):
    """The labeled set and the pool of ``SelfTraining`` behind one index; its items are batches."""

    labeled: SizedDataset
    pool: SizedDataset
    classes: int

    def __getitem__(self, indices: list[int]) -> MixedBatch:
        """The batch of a list of indices: a pool that makes images in batches makes one batch.

        A seed label that is missing or None is −1.
        """
        border = len(self.labeled)
        rows = [index - border for index in indices if index >= border]
        real, targets = _fetch(self.labeled, [index for index in indices if index < border])
        synthetic, labels = _fetch(self.pool, rows)
        targets = [target if _is_soft(target) else torch.tensor(class_number(target, self.classes))
                   for target in targets]
        seed_labels = [-1 if label is None or plain_label(label) == -1
                       else class_number(label, self.classes) for label in labels]
        return MixedBatch(*map(_stack, (real, targets, synthetic)),
                          *(torch.tensor(each, dtype=torch.int64) for each in (rows, seed_labels)))


def _fetch(dataset: SizedDataset, indices: list[int]) -> tuple[list[Tensor], list[Any]]:
    """Images and labels; a label is None where there is none."""
    if indices and isinstance(dataset, BatchedDataset):
        items = dataset.__getitems__(indices)
    else:
        items = [dataset[index] for index in indices]
    # a TensorDataset of images alone gives tuples of one
    pairs = [(*item, None)[:2] if isinstance(item, (tuple, list)) and item else (item, None)
             for item in items]
    for image, _ in pairs:
        if not isinstance(image, Tensor):
            raise TypeError(
                f"images must be tensors (C, H, W), got {type(image).__name__}; give the dataset a "
                "transform: v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]).")
    return [image for image, _ in pairs], [label for _, label in pairs]


def _is_soft(label: Any) -> bool:
    """Whether it is a soft label, which the wrapper checks."""
    return isinstance(label, Tensor) and label.is_floating_point() and label.numel() > 1


def _stack(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts) if parts else torch.zeros(0)
