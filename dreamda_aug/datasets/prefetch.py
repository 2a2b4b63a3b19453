"""Synthetic images made ahead of training, by a process beside it."""

import atexit
import logging
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.multiprocessing
from torch import Tensor
from torch.utils.data import get_worker_info

from dreamda_aug.datasets.pool import ImagePool
from dreamda_aug.errors import GenerationError

logger = logging.getLogger(__name__)

# A producer that dies so often in a row without having made anything is not started again.
MAX_FAILURES = 3
# Seconds before it is started again, doubled each time.
PAUSE = 2.0
# What it shares: shards written, shards of which anything is there, restarts, whether given up.
_WRITTEN, _READY, _RESTARTS, _LOST = range(4)
# What is counted: images of this epoch, of earlier ones, the sum of their ages, made on demand.
_FRESH, _OLDER, _AGES, _MADE = range(4)
# Each worker of a DataLoader counts in a row of its own, so that no count is lost.
_ROWS = 256
_GIVEN_UP = (
    f"the producer of synthetic images died {MAX_FAILURES} times without having made any, and is "
    "not started again; its own error stands above. Its process imports the main script again: put "
    "the script's own work under `if __name__ == \"__main__\":`, and classes of datasets into "
    "modules."
)


class Makes(Protocol):
    """What the producer calls: an `AugmentedDataset` without a producer of its own."""

    def make_values(self, images: Sequence[int], epoch: int) -> dict[tuple[int, int], Tensor]:
        """All replicas of some seed images, as `ImagePool.write` takes them."""
        ...


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


class Prefetcher:
    """A pool of synthetic images, and the process that keeps it fresh.

    The pool lies in the folder for temporary files (``$TMPDIR``) and is deleted at the end. Of each
    image it holds the newest epoch that is ready, and those ahead. A producer that dies is started
    again; meanwhile what is there is served.

    Args:
        maker: what the producer runs; pickled.
        images: number of seed images.
        replicas: of each.
        epoch: the current epoch, 0-d int64 in shared memory.
        prefetch_epochs: how many epochs the producer may be ahead of it, >= 0.
        images_per_shard: seed images that are made together.

    Raises:
        TypeError: ``maker`` cannot be sent to another process.
        GenerationError: this process may not start another one.
    """

    def __init__(
        self, maker: Makes, images: int, replicas: int, epoch: Tensor, prefetch_epochs: int,
        images_per_shard: int,
    ):
        folder = Path(tempfile.mkdtemp(prefix="dreamda-prefetch-"))
        self.pool = ImagePool(folder, images, replicas, images_per_shard)
        self._counts = torch.zeros(_ROWS, 4, dtype=torch.int64).share_memory_()
        self._state = torch.zeros(4, dtype=torch.int64).share_memory_()
        self._producer: _Producer | None = _Producer(
            (maker, self.pool, epoch, prefetch_epochs, self._state, torch.get_num_threads()))
        self._finalizer: weakref.finalize[..., Any] | None = weakref.finalize(
            self, self._producer.stop)

    def take(self, image: int, replica: int, epoch: int) -> tuple[int, Tensor] | None:
        """The newest image that is no newer than the epoch, as `ImagePool.read` gives it."""
        found = self.pool.read(image, replica, epoch)
        info = get_worker_info()
        counts = self._counts[0 if info is None else (info.id + 1) % _ROWS]
        if found is None:
            counts[_MADE] += 1
        else:
            age = epoch - found[0]
            counts[_OLDER if age else _FRESH] += 1
            counts[_AGES] += age
        return found

    def freshness(self, epoch: int) -> Freshness:
        """What was served since `forget`."""
        fresh, older, ages, made = self._counts.sum(0).tolist()
        return Freshness(epoch, fresh, older, made, ages / max(1, fresh + older + made),
                         int(self._state[_RESTARTS]))

    def forget(self) -> None:
        """Begin to count anew."""
        self._counts.zero_()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until there is something for every synthetic sample.

        Args:
            timeout: in seconds, or None to wait as long as it takes.

        Raises:
            TimeoutError: it has taken longer.
            GenerationError: the producer was given up.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while int(self._state[_READY]) < self.pool.shards:
            if self._state[_LOST]:
                raise GenerationError(_GIVEN_UP)
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{int(self._state[_READY])} of {self.pool.shards} parts of the pool are there "
                    f"after {timeout} s; wait longer, or go on: what is missing is made on demand."
                )
            time.sleep(0.02)

    @property
    def producer(self) -> int | None:
        """Process number of the producer, or None in another process and once it is stopped."""
        return None if self._producer is None else self._producer.pid

    def close(self) -> None:
        """Stop the producer and delete the pool, if this process has started them."""
        if self._finalizer is not None:
            self._finalizer()

    def __getstate__(self) -> dict[str, Any]:
        # a worker reads; the process that started the producer looks after it
        return {**self.__dict__, "_producer": None, "_finalizer": None}


class _Producer:
    """Starts the process, starts it again when it dies, and cleans up.

    Args:
        arguments: of `produce`.
    """

    def __init__(self, arguments: tuple[Makes, ImagePool, Tensor, int, Tensor, int]):
        self._arguments, self._pool, self._state = arguments, arguments[1], arguments[4]
        self._owner = os.getpid()
        self._stopping, self._lock = threading.Event(), threading.Lock()
        try:
            self._process = self._started()
        except BaseException:
            shutil.rmtree(self._pool.folder, ignore_errors=True)
            raise
        threading.Thread(target=self._watch, daemon=True, name="dreamda-prefetch").start()
        # before multiprocessing's own, which would end the producer as if it had died
        atexit.register(self.stop)

    @property
    def pid(self) -> int | None:
        return None if self._stopping.is_set() else self._process.pid

    def _started(self) -> Any:
        if multiprocessing.current_process().daemon:
            raise GenerationError(
                "prefetch_epochs needs a process of its own, which a daemonic one (a worker) "
                "cannot start; make the AugmentedDataset in the main process."
            )
        process = torch.multiprocessing.get_context("spawn").Process(
            target=produce, args=self._arguments, daemon=True, name="dreamda-prefetch")
        try:
            process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                "with prefetch_epochs the dataset is sent to another process, and something in it "
                f"cannot be ({error}). Lambdas and classes made in functions are usual reasons: "
                "name the function in a module, or use prefetch_epochs=0."
            ) from error
        return process

    def _watch(self) -> None:
        failures, seen = 0, 0
        while True:
            connection.wait([self._process.sentinel])
            if self._stopping.is_set():
                return
            made = int(self._state[_WRITTEN])
            failures, seen = (0 if made > seen else failures + 1), made
            if failures >= MAX_FAILURES:
                self._state[_LOST] = 1
                logger.warning("%s", _GIVEN_UP)
                return
            logger.warning("the producer of synthetic images died and is started again; training "
                           "goes on with the %d parts of the pool that are there",
                           int(self._state[_READY]))
            if failures and self._stopping.wait(PAUSE * 2 ** (failures - 1)):
                return
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process.join()
                self._process = self._started()
                self._state[_RESTARTS] += 1

    def stop(self) -> None:
        """End the producer and delete the pool; does nothing in a forked copy, or again."""
        if os.getpid() != self._owner or self._stopping.is_set():
            return
        self._stopping.set()
        atexit.unregister(self.stop)
        with self._lock:
            self._process.terminate()
            self._process.join(5)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
        shutil.rmtree(self._pool.folder, ignore_errors=True)


def produce(
    maker: Makes, pool: ImagePool, epoch: Tensor, prefetch_epochs: int, state: Tensor, threads: int
) -> None:
    """Keep a pool fresh until the process that started this one ends.

    Args:
        maker: makes the images.
        pool: where they go.
        epoch: the current epoch, 0-d int64 in shared memory.
        prefetch_epochs: how many epochs further to go.
        state: (4,) int64 in shared memory: shards written, shards of which anything is there,
            restarts, whether the producer was given up.
        threads: for torch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    pool.remove_temporaries()
    ready = [set(pool.epochs(shard)) for shard in range(pool.shards)]
    state[_READY] = sum(map(bool, ready))
    while parent is None or parent.is_alive():
        now = int(epoch)
        for each, shard in missing(ready, now, prefetch_epochs):
            pool.write(shard, each, maker.make_values(pool.images_of(shard), each))
            pool.drop_older(shard, now)
            state[_WRITTEN] += 1
            state[_READY] += not ready[shard]
            ready[shard] = set(pool.epochs(shard))
            if int(epoch) != now or (parent is not None and not parent.is_alive()):
                break
        else:
            time.sleep(0.05)
    shutil.rmtree(pool.folder, ignore_errors=True)  # the process that would do so was killed


def missing(
    ready: Sequence[set[int]], now: int, prefetch_epochs: int
) -> Iterator[tuple[int, int]]:
    """What to make next: epoch and shard, the current epoch first, in it the oldest shards first.

    So every image has its turn where training is faster than the producer.

    Args:
        ready: the epochs that are there of each shard.
        now: the current epoch.
        prefetch_epochs: how many epochs further to go.
    """
    for epoch in range(now, now + prefetch_epochs + 1):
        lacking = [shard for shard, epochs in enumerate(ready) if epoch not in epochs]
        yield from ((epoch, shard) for shard in sorted(
            lacking, key=lambda shard: max(ready[shard], default=-1)))
