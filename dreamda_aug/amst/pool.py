"""Batches that mix real, accepted and unlabeled images at a stated ratio."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from dreamda_aug.amst.checks import check_least, check_ratio

# An image, its target or seed label, and its place in the pool; −1 − i for labeled image i.
Item = tuple[Tensor, Tensor, int]


class SizedDataset(Protocol):
    """A dataset with a length, such as a list, ``TensorDataset`` or ``ImageFolder``."""

    def __len__(self) -> int:
        """Number of items."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """One item."""
        ...


@runtime_checkable
class BatchedDataset(Protocol):
    """A dataset that makes several items at once, as torch's DataLoader knows it."""

    def __getitems__(self, indices: list[int], /) -> Sequence[Any]:
        """The items of these indices, in their order."""
        ...


@runtime_checkable
class EpochDataset(Protocol):
    """A dataset whose items change from epoch to epoch."""

    def set_epoch(self, epoch: int, /) -> Any:
        """Make the items of this epoch from now on."""
        ...


@dataclass(frozen=True)
class MixedBatch:
    """One training batch.

    Attributes:
        real: labeled images, (N, C, H, W).
        targets: labels of ``real``, (N,) int64 or (N, classes) float.
        synthetic: images from the pool, (M, C, H, W); accepted ones first.
        indices: places of ``synthetic`` in the pool, (M,) int64.
        seed_labels: seed labels of ``synthetic``, (M,) int64; −1 where the pool has none.
        real_indices: places of ``real`` in the labeled set, (N,) int64.
    """

    real: Tensor
    targets: Tensor
    synthetic: Tensor
    indices: Tensor
    seed_labels: Tensor
    real_indices: Tensor

    def to(self, device: torch.device | str) -> MixedBatch:
        """The same on another device."""
        return MixedBatch(*(value.to(device) for value in vars(self).values()))


class MixedBatchSampler(Sampler[list[int]]):
    """Index lists that mix three sources at a fixed ratio, each source reshuffled when it ends.

    Indices below ``labeled`` point into the labeled set, ``labeled + i`` to image i of the
    pool. Where one of the two pool sources is empty, the other takes its place in the batch.

    Args:
        labeled: number of labeled images, ≥ 1.
        accepted, unlabeled: indices into the pool.
        batch_size: images per batch.
        ratio: real : accepted : unlabeled, three numbers ≥ 0, the first > 0.
        steps: number of batches.
        rng_seed: the whole sequence depends on it alone.
    """

    def __init__(
        self,
        labeled: int,
        accepted: Sequence[int],
        unlabeled: Sequence[int],
        *,
        batch_size: int,
        ratio: tuple[float, float, float] = (1, 1, 1),
        steps: int,
        rng_seed: int = 0,
    ) -> None:
        if labeled < 1:
            raise ValueError(f"labeled must hold at least one image, got {labeled}.")
        check_least("steps", steps, 1)
        self.sources = (
            torch.arange(labeled),
            labeled + torch.as_tensor(accepted, dtype=torch.int64),
            labeled + torch.as_tensor(unlabeled, dtype=torch.int64),
        )
        self.counts = batch_counts(batch_size, ratio, [len(source) for source in self.sources])
        self.steps, self.rng_seed = steps, rng_seed

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.rng_seed)
        streams = [_endless(source, generator) for source in self.sources]
        for _ in range(self.steps):
            yield [
                next(stream)
                for stream, count in zip(streams, self.counts, strict=True)
                for _ in range(count)
            ]


class JointDataset(Dataset[Item]):
    """A labeled set followed by a pool, behind one index.

    Items are (image, target, place in the pool); the place of labeled image i is −1 − i. Items of
    the pool may be an image, (image,) or (image, seed label, …); a missing label becomes −1.
    """

    def __init__(self, labeled: SizedDataset, pool: SizedDataset) -> None:
        self.labeled, self.pool = labeled, pool

    def __len__(self) -> int:
        return len(self.labeled) + len(self.pool)

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Item]:
        """All items at once, so that a pool that makes images in batches makes one batch."""
        border = len(self.labeled)
        real = iter(fetch(self.labeled, [index for index in indices if index < border]))
        made = iter(fetch(self.pool, [index - border for index in indices if index >= border]))
        items = []
        for index in indices:
            image, label = split_item(next(real) if index < border else next(made))
            items.append((image, label, -1 - index if index < border else index - border))
        return items


def fetch(dataset: SizedDataset, indices: list[int]) -> Sequence[Any]:
    """Items of a dataset, through its ``__getitems__`` where it has one."""
    if not indices:
        return []
    if isinstance(dataset, BatchedDataset):
        return dataset.__getitems__(indices)
    return [dataset[index] for index in indices]


def collate(items: Sequence[Item]) -> MixedBatch:
    """Items of ``JointDataset`` -> ``MixedBatch``."""
    real = [item for item in items if item[2] < 0]
    made = [item for item in items if item[2] >= 0]
    images = torch.stack([image for image, _, _ in items])
    is_real = torch.tensor([place < 0 for _, _, place in items])
    return MixedBatch(
        real=images[is_real],
        targets=torch.stack([target for _, target, _ in real])
        if real
        else torch.zeros(0, dtype=torch.int64),
        synthetic=images[~is_real],
        indices=torch.tensor([place for _, _, place in made], dtype=torch.int64),
        seed_labels=torch.tensor([int(label) for _, label, _ in made], dtype=torch.int64),
        real_indices=torch.tensor([-1 - place for _, _, place in real], dtype=torch.int64),
    )


def batch_counts(
    batch_size: int, ratio: Sequence[float], sizes: Sequence[int]
) -> tuple[int, int, int]:
    """How many images of each source make up a batch: largest remainders, at least one real.

    Args:
        batch_size: images per batch, ≥ 2.
        ratio: real : accepted : unlabeled.
        sizes: how many images each source has.
    """
    check_least("batch_size", batch_size, 2)
    check_ratio(ratio)
    real, accepted, unlabeled = ratio
    if not sizes[1]:
        accepted, unlabeled = 0, accepted + unlabeled
    if not sizes[2]:
        accepted, unlabeled = accepted + unlabeled, 0
    if not sizes[1]:
        accepted = 0
    shares = [batch_size * part / (real + accepted + unlabeled)
              for part in (real, accepted, unlabeled)]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(3), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: batch_size - sum(counts)]:
        counts[i] += 1
    if counts[0] == 0:
        largest = max(range(3), key=lambda i: counts[i])
        counts[0], counts[largest] = 1, counts[largest] - 1
    return counts[0], counts[1], counts[2]


def _endless(source: Tensor, generator: torch.Generator) -> Iterator[int]:
    while True:
        shuffled = source[torch.randperm(len(source), generator=generator)]
        yield from cast(list[int], shuffled.tolist())


def split_item(item: object) -> tuple[Tensor, Tensor]:
    """Image and label of an item of either set; no label is −1.

    Raises:
        TypeError: the image is no tensor.
    """
    # a TensorDataset of images alone gives tuples of one
    image, label = (*item, -1)[:2] if isinstance(item, (tuple, list)) and item else (item, -1)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"images must be tensors (C, H, W), got {type(image).__name__}; give the dataset a "
            "transform: v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])."
        )
    return image, torch.as_tensor(-1 if label is None else label)
