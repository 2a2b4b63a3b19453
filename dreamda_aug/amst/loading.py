"""The data loaders of a self-training run, over a labeled set and a pool."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from dreamda_aug.amst.plan import RunPlan
from dreamda_aug.amst.pool import JointDataset, MixedBatchSampler, collate


@dataclass(frozen=True)
class BatchLoading:
    """Makes data loaders whose batches are ``MixedBatch`` values.

    Attributes:
        data: the labeled set followed by the pool.
        plan: what a batch holds.
        steps: number of batches of an epoch.
        num_workers: of each data loader.
    """

    data: JointDataset
    plan: RunPlan
    steps: int
    num_workers: int

    def real(self, rng_seed: int, worker_seed: int) -> DataLoader[Any]:
        """An epoch of real images alone.

        Args:
            rng_seed: decides the order of the images.
            worker_seed: seeds the random transforms of the datasets, if there are any.
        """
        sampler = MixedBatchSampler(
            len(self.data.labeled), [], [], batch_size=self.plan.batch_size, ratio=(1, 0, 0),
            steps=self.steps, rng_seed=rng_seed,
        )  # fmt: skip
        return self._loader(sampler, worker_seed)

    def mixed(self, accepted: Tensor | None, rng_seed: int, worker_seed: int) -> DataLoader[Any]:
        """An epoch of real, accepted and unlabeled images at the plan's ratio.

        Args:
            accepted: True for the accepted images of the pool, (pool,) bool; None: none is.
            rng_seed, worker_seed: as in ``real``.
        """
        chosen: Sequence[int] = []
        others: Sequence[int] = range(len(self.data.pool))
        if accepted is not None:
            chosen = accepted.nonzero().squeeze(1).tolist()
            others = (~accepted).nonzero().squeeze(1).tolist()
        sampler = MixedBatchSampler(
            len(self.data.labeled), chosen, others, batch_size=self.plan.batch_size,
            ratio=self.plan.ratio, steps=self.steps, rng_seed=rng_seed,
        )  # fmt: skip
        return self._loader(sampler, worker_seed)

    def whole_pool(self, worker_seed: int) -> DataLoader[Any]:
        """Every image of the pool once, in order, without real images."""
        places = range(len(self.data.labeled), len(self.data))
        batches = BatchSampler(places, self.plan.batch_size, drop_last=False)
        return self._loader(batches, worker_seed)

    def _loader(self, batches: Iterable[list[int]], worker_seed: int) -> DataLoader[Any]:
        return DataLoader(
            self.data,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(worker_seed),
        )
