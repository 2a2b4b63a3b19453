"""Synthetic images made ahead of training, by a process beside it."""

import math
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dreamda_aug.datasets.pool import ImagePool
from dreamda_aug.datasets.producer import GIVEN_UP, LOST, READY, RESTARTS, Makes, Producer
from dreamda_aug.errors import GenerationError

# Each worker of a DataLoader counts in a row of its own, so that no count is lost.
_ROWS = 256


@dataclass(frozen=True)
class Freshness:
    """How new the synthetic images were that an epoch was served.

    Attributes:
        epoch: the epoch.
        fresh: images of this epoch, from the pool.
        older: images of an earlier epoch, since this one's were not ready.
        made: images made when they were asked for, since none was ready.
        mean_age: by how many epochs the images were too old, on average.
        restarts: how often the producer had to be started again, in all epochs.
    """

    epoch: int
    fresh: int
    older: int
    made: int
    mean_age: float
    restarts: int

    def __str__(self) -> str:
        total = self.fresh + self.older + self.made
        return (f"epoch {self.epoch}: {total} synthetic images served, {self.fresh} fresh, "
                f"{self.older} of earlier epochs, {self.made} made on demand; mean age "
                f"{self.mean_age:.2f} epochs, {self.restarts} restarts of the producer")


class Ahead:
    """A pool of synthetic images, and the process that keeps it fresh.

    The pool lies in the folder for temporary files (``$TMPDIR``) and is deleted at the end. Of each
    image it holds the newest epoch that is ready, and those ahead. A producer that dies is started
    again; meanwhile what is there is served.

    Args:
        maker: what the producer runs; pickled.
        images: number of seed images.
        replicas: of each.
        epoch: the current epoch, 0-d int64 in shared memory.
        ahead: how many epochs the producer may be ahead of it, >= 1.
        images_per_shard: seed images that are made together.

    Raises:
        TypeError: ``maker`` cannot be sent to another process.
        GenerationError: this process may not start another one.
    """

    def __init__(
        self, maker: Makes, images: int, replicas: int, epoch: Tensor, ahead: int,
        images_per_shard: int,
    ):
        folder = Path(tempfile.mkdtemp(prefix="dreamda-ahead-"))
        self.pool = ImagePool(folder, images, replicas, images_per_shard)
        # columns: fresh, older, sum of ages, made
        self._counts = torch.zeros(_ROWS, 4, dtype=torch.int64).share_memory_()
        self._state = torch.zeros(4, dtype=torch.int64).share_memory_()
        self._producer: Producer | None = Producer(maker, self.pool, epoch, ahead, self._state)
        self._finalizer: weakref.finalize[..., Any] | None = weakref.finalize(
            self, self._producer.stop)

    def take(self, image: int, replica: int, epoch: int) -> tuple[int, Tensor] | None:
        """The newest image that is no newer than the epoch, as `ImagePool.read` gives it."""
        found = self.pool.read(image, replica, epoch)
        info = get_worker_info()
        counts = self._counts[0 if info is None else (info.id + 1) % _ROWS]
        if found is None:
            counts[3] += 1
        else:
            age = epoch - found[0]
            counts[1 if age else 0] += 1
            counts[2] += age
        return found

    def freshness(self, epoch: int) -> Freshness:
        """What was served since `forget`."""
        fresh, older, ages, made = self._counts.sum(0).tolist()
        return Freshness(epoch, fresh, older, made, ages / max(1, fresh + older + made),
                         int(self._state[RESTARTS]))

    def forget(self) -> None:
        """Begin to count anew."""
        self._counts.zero_()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until there is something for every synthetic sample.

        Args:
            timeout: in seconds; None: as long as it takes.

        Raises:
            TimeoutError: it has taken longer.
            GenerationError: the producer was given up.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while int(self._state[READY]) < self.pool.shards:
            if self._state[LOST]:
                raise GenerationError(GIVEN_UP)
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{int(self._state[READY])} of {self.pool.shards} parts of the pool are there "
                    f"after {timeout} s; wait longer, or go on: what is missing is made on demand."
                )
            time.sleep(0.02)

    @property
    def producer(self) -> int | None:
        """Process number of the producer; None: in another process, or stopped."""
        return None if self._producer is None else self._producer.pid

    def close(self) -> None:
        """Stop the producer and delete the pool, if this process has started them."""
        if self._finalizer is not None:
            self._finalizer()

    def __getstate__(self) -> dict[str, Any]:
        # a worker reads; who started the producer looks after it
        return {**self.__dict__, "_producer": None, "_finalizer": None}
