"""The process that makes synthetic images ahead of training, and who looks after it."""

import atexit
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from typing import Any, Protocol

import torch
import torch.multiprocessing
from torch import Tensor

from dreamda_aug.datasets.pool import ImagePool
from dreamda_aug.errors import GenerationError

logger = logging.getLogger(__name__)

# A producer that dies so often in a row without having made anything is not started again.
MAX_FAILURES = 3
# Seconds before it is started again, doubled each time.
PAUSE = 2.0
# What it shares: shards written, shards of which anything is there, restarts, whether given up.
WRITTEN, READY, RESTARTS, LOST = range(4)
GIVEN_UP = (
    f"the producer of synthetic images died {MAX_FAILURES} times without having made any, and is "
    "not started again; what it said stands above. Its process imports the main script again: put "
    "the script's own work under `if __name__ == \"__main__\":`, and classes of datasets into "
    "modules."
)


class Makes(Protocol):
    """What the producer calls: `AugmentedDataset`, as it is without a producer."""

    def make_values(
        self, images: Sequence[int], epoch: int
    ) -> dict[tuple[int, int], Tensor]:
        """All replicas of some seed images, as `ImagePool.write` takes them."""
        ...


class Producer:
    """Starts the process, starts it again when it dies, and cleans up.

    Args:
        maker: what makes the images; pickled.
        pool: where they go; deleted at the end.
        epoch: the current epoch, 0-d int64 in shared memory.
        ahead: how many epochs the process may be ahead of it.
        state: (4,) int64 in shared memory: `WRITTEN`, `READY`, `RESTARTS`, `LOST`.

    Raises:
        TypeError: ``maker`` cannot be pickled.
        GenerationError: this process may not start another one.
    """

    def __init__(self, maker: Makes, pool: ImagePool, epoch: Tensor, ahead: int, state: Tensor):
        self._arguments = (maker, pool, epoch, ahead, state, torch.get_num_threads())
        self._pool, self._state = pool, state
        self._owner = os.getpid()
        self._stopping, self._lock = threading.Event(), threading.Lock()
        try:
            self._process = self._started()
        except BaseException:
            shutil.rmtree(pool.folder, ignore_errors=True)
            raise
        threading.Thread(target=self._watch, daemon=True, name="dreamda-ahead").start()
        # before multiprocessing's own, which would end the producer as if it had died
        atexit.register(self.stop)

    @property
    def pid(self) -> int | None:
        """The process's number; None: it was stopped."""
        return None if self._stopping.is_set() else self._process.pid

    def _started(self) -> Any:
        if multiprocessing.current_process().daemon:
            raise GenerationError(
                "ahead needs a process of its own, which a daemonic one (a worker) cannot start; "
                "make the AugmentedDataset in the main process."
            )
        process = torch.multiprocessing.get_context("spawn").Process(
            target=produce, args=self._arguments, daemon=True, name="dreamda-ahead")
        try:
            process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                "with ahead the dataset is sent to another process, and something in it cannot be "
                f"({error}). Lambdas and classes made in functions are usual reasons: name the "
                "function in a module, or use ahead=0."
            ) from error
        return process

    def _watch(self) -> None:
        failures, seen = 0, 0
        while True:
            connection.wait([self._process.sentinel])
            if self._stopping.is_set():
                return
            made = int(self._state[WRITTEN])
            failures, seen = (0 if made > seen else failures + 1), made
            if failures >= MAX_FAILURES:
                self._state[LOST] = 1
                logger.warning("%s", GIVEN_UP)
                return
            logger.warning("the producer of synthetic images died and is started again; training "
                           "goes on with the %d parts of the pool that are there",
                           int(self._state[READY]))
            if failures and self._stopping.wait(PAUSE * 2 ** (failures - 1)):
                return
            with self._lock:
                if self._stopping.is_set():
                    return
                self._process.join()
                self._process = self._started()
                self._state[RESTARTS] += 1

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
    maker: Makes, pool: ImagePool, epoch: Tensor, ahead: int, state: Tensor, threads: int
) -> None:
    """Keep a pool fresh until the process that started this one ends.

    Args:
        maker: makes the images.
        pool: where they go.
        epoch: the current epoch, shared.
        ahead: how many epochs further to go.
        state: as in `Producer`.
        threads: for torch.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this process
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    pool.remove_temporaries()
    ready = [set(pool.epochs(shard)) for shard in range(pool.shards)]
    state[READY] = sum(map(bool, ready))
    while parent is None or parent.is_alive():
        now = int(epoch)
        for each, shard in missing(ready, now, ahead):
            pool.write(shard, each, maker.make_values(pool.images_of(shard), each))
            pool.drop_older(shard, now)
            state[WRITTEN] += 1
            state[READY] += not ready[shard]
            ready[shard] = set(pool.epochs(shard))
            if int(epoch) != now or (parent is not None and not parent.is_alive()):
                break
        else:
            time.sleep(0.05)
    shutil.rmtree(pool.folder, ignore_errors=True)  # who would have done it was killed


def missing(ready: Sequence[set[int]], now: int, ahead: int) -> Iterator[tuple[int, int]]:
    """What to make next: epoch and shard, the current epoch first, in it the oldest shards first.

    So every image has its turn where training is faster than the producer.

    Args:
        ready: the epochs that are there of each shard.
        now: the current epoch.
        ahead: how many epochs further to go.
    """
    for epoch in range(now, now + ahead + 1):
        lacking = [shard for shard, epochs in enumerate(ready) if epoch not in epochs]
        yield from ((epoch, shard) for shard in sorted(
            lacking, key=lambda shard: max(ready[shard], default=-1)))
