"""Batches that mix real, accepted and unlabeled images at a stated ratio."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from dreamda_aug.amst.rules import RunPlan
from dreamda_aug.inputs.dataset_reader import SizedDataset
from dreamda_aug.inputs.samples import class_number, plain_label

# An image, its target or seed label, and its position in the pool; −1 for labeled images.
Item = tuple[Tensor, Tensor, int]


@runtime_checkable
class BatchedDataset(Protocol):
    """A dataset that makes several items at once, as torch's DataLoader supports it."""

    def __getitems__(self, indices: list[int], /) -> Sequence[Any]: ...


@dataclass(frozen=True)
class MixedBatch:
    """One training batch.

    Attributes:
        real: labeled images, (N, C, H, W).
        targets: labels of ``real``, (N,) int64 or (N, classes) float.
        synthetic: images from the pool, (M, C, H, W); accepted ones first.
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


class MixedBatchSampler(Sampler[list[int]]):
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

    def __init__(
        self, labeled: int, accepted: Sequence[int], unlabeled: Sequence[int], *,
        batch_size: int, ratio: tuple[float, float, float] = (1, 1, 1), steps: int,
        rng_seed: int = 0,
    ) -> None:
        self.steps, self.rng_seed = steps, rng_seed
        self.sources = (
            torch.arange(labeled),
            labeled + torch.as_tensor(accepted, dtype=torch.int64),
            labeled + torch.as_tensor(unlabeled, dtype=torch.int64),
        )
        self.counts = batch_counts(batch_size, ratio, [len(source) for source in self.sources])

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.rng_seed)
        streams = [_endless(source, generator) for source in self.sources]
        for _ in range(self.steps):
            yield [next(stream) for stream, count in zip(streams, self.counts, strict=True)
                   for _ in range(count)]


def batch_counts(
    batch_size: int, ratio: tuple[float, float, float], sizes: Sequence[int]
) -> list[int]:
    """How many images of each source, of these sizes, make up a batch; at least one is real."""
    real, accepted, unlabeled = ratio
    if not sizes[1]:
        accepted, unlabeled = 0, accepted + unlabeled
    if not sizes[2]:
        accepted, unlabeled = (accepted + unlabeled if sizes[1] else 0), 0
    total = real + accepted + unlabeled
    shares = [batch_size * part / total for part in (real, accepted, unlabeled)]
    counts = [math.floor(share) for share in shares]
    by_remainder = sorted(range(3), key=lambda i: counts[i] - shares[i])
    for i in by_remainder[: batch_size - sum(counts)]:
        counts[i] += 1
    if counts[0] == 0:
        largest = max(range(3), key=lambda i: counts[i])
        counts[0], counts[largest] = 1, counts[largest] - 1
    return counts


class BatchLoading(Dataset[Item]):
    """The labeled set and the pool of ``SelfTraining`` behind one index, and their data loaders.

    Batches are ``MixedBatch`` values; an epoch has ``steps`` of them. A seed label that is missing
    or None is −1.
    """

    def __init__(
        self, labeled: SizedDataset, pool: SizedDataset, classes: int, plan: RunPlan,
        num_workers: int = 0,
    ) -> None:
        self.labeled, self.pool, self.classes = labeled, pool, classes
        self.plan, self.num_workers = plan, num_workers
        of_pool = sum(batch_counts(plan.batch_size, plan.ratio, [1, 1, 1])[1:])
        self.steps = plan.steps_per_epoch or math.ceil(len(pool) / max(1, of_pool))

    def mixed(self, accepted: Tensor | None, rng_seed: int, worker_seed: int) -> DataLoader[Any]:
        """An epoch of real, accepted and unlabeled images at the plan's ratio.

        ``accepted`` is True for the accepted images of the pool, (pool,) bool, or None for an epoch
        of real images alone. The one seed decides their order, the other the datasets' own random
        transforms.
        """
        indices = torch.arange(0 if accepted is None else len(self.pool))
        accepted = torch.zeros(len(indices), dtype=torch.bool) if accepted is None else accepted
        return self._loader(MixedBatchSampler(
            len(self.labeled), indices[accepted].tolist(), indices[~accepted].tolist(),
            batch_size=self.plan.batch_size, ratio=self.plan.ratio, steps=self.steps,
            rng_seed=rng_seed), worker_seed)

    def whole_pool(self, worker_seed: int) -> DataLoader[Any]:
        """Every image of the pool once, in order, without real images."""
        indices = range(len(self.labeled), len(self))
        return self._loader(BatchSampler(indices, self.plan.batch_size, False), worker_seed)

    def __len__(self) -> int:
        return len(self.labeled) + len(self.pool)

    def __getitems__(self, indices: list[int]) -> list[Item]:
        """All items at once, so that a pool that makes images in batches makes one batch."""
        border = len(self.labeled)
        real = iter(_fetch(self.labeled, [index for index in indices if index < border]))
        made = iter(_fetch(self.pool, [index - border for index in indices if index >= border]))
        items = []
        for index in indices:
            image, label = _split(next(real) if index < border else next(made))
            if index >= border and (label is None or plain_label(label) == -1):
                target = torch.tensor(-1)
            elif index < border and isinstance(label, Tensor) and label.is_floating_point() and (
                    label.numel() > 1):
                target = label  # a soft label, which the wrapper checks
            else:
                target = torch.tensor(class_number(label, self.classes))
            items.append((image, target, max(index - border, -1)))
        return items

    def _loader(self, batches: Iterable[list[int]], worker_seed: int) -> DataLoader[Any]:
        return DataLoader(self, batch_sampler=batches, collate_fn=_collate,
                          num_workers=self.num_workers,
                          generator=torch.Generator().manual_seed(worker_seed))


def _fetch(dataset: SizedDataset, indices: list[int]) -> Sequence[Any]:
    if indices and isinstance(dataset, BatchedDataset):
        return dataset.__getitems__(indices)
    return [dataset[index] for index in indices]


def _split(item: object) -> tuple[Tensor, Any]:
    """Image and label of an item of either set; the label is None where there is none."""
    # a TensorDataset of images alone gives tuples of one
    image, label = (*item, None)[:2] if isinstance(item, (tuple, list)) and item else (item, None)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"images must be tensors (C, H, W), got {type(image).__name__}; give the dataset a "
            "transform: v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]).")
    return image, label


def _collate(items: Sequence[Item]) -> MixedBatch:
    images = torch.stack([image for image, _, _ in items])
    indices = torch.tensor([index for _, _, index in items])
    targets = [target for _, target, index in items if index < 0]
    seed_labels = [target for _, target, index in items if index >= 0]
    nothing = torch.zeros(0, dtype=torch.int64)
    return MixedBatch(images[indices < 0], torch.stack(targets) if targets else nothing,
                      images[indices >= 0], indices[indices >= 0],
                      torch.stack(seed_labels) if seed_labels else nothing)


def _endless(source: Tensor, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from source[torch.randperm(len(source), generator=generator)].tolist()
