"""Synthetic images made ahead of training, by a process beside it, and kept on disk."""

import logging
import math
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.multiprocessing
from torch import Tensor
from torch.utils.data import get_worker_info

from dreamda_aug.errors import GenerationError
from dreamda_aug.files import write_atomically

logger = logging.getLogger(__name__)

# By number of the seed image and of the replica: pixels (1, C, H, W), uint8 in [0, 255] where the
# seed image has 8 bits, else float32 in [0, 1].
Replicas = Mapping[tuple[int, int], Tensor]
# Each worker of a DataLoader counts in a row of its own, so that no count is lost.
_ROWS = 256
_DIED = (
    "the process that makes synthetic images ahead died; its own error stands above. The next "
    "set_epoch starts it again; until then images are those that are ready, or made on demand. It "
    "imports the main script again: put the script's own work under `if __name__ == "
    "\"__main__\":`, and classes of datasets into modules."
)


@dataclass(frozen=True)
class Freshness:
    """How new the synthetic images were that an epoch was served.

    Attributes:
        epoch: the epoch.
        fresh: images of this epoch, made ahead.
        older: images of an earlier epoch, since this one's were not ready.
        made: images made on demand, since none was ready.
        mean_age: by how many epochs the images were too old, on average.
    """

    epoch: int
    fresh: int
    older: int
    made: int
    mean_age: float

    def __str__(self) -> str:
        total = self.fresh + self.older + self.made
        return (f"epoch {self.epoch}: {total} synthetic images served, {self.fresh} fresh, "
                f"{self.older} of earlier epochs, {self.made} made on demand; mean age "
                f"{self.mean_age:.2f} epochs")


@dataclass(frozen=True)
class ImagePool:
    """A folder that one process writes and any number of processes read.

    A shard is all replicas of a few neighbouring seed images in one epoch: one safetensors file,
    which appears as a whole or not at all.

    Attributes:
        folder: where it lies.
        images: number of seed images, N.
        images_per_shard: seed images to a shard, >= 1.
    """

    folder: Path
    images: int
    images_per_shard: int

    @property
    def shards(self) -> list[range]:
        """The seed images of each shard."""
        every, size = range(self.images), self.images_per_shard
        return [every[start : start + size] for start in every[::size]]

    def epochs(self, shard: int) -> list[int]:
        """The epochs of which a shard is there, rising."""
        return sorted(int(path.stem) for path in self._path(shard, 0).parent.glob("*.safetensors"))

    def write(self, shard: int, epoch: int, replicas: Replicas) -> None:
        """Write a shard; raises StorageError if the disk is full or refuses."""
        path = self._path(shard, epoch)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, safetensors.torch.save(
            {f"{image}/{replica}": values.contiguous()
             for (image, replica), values in replicas.items()}))

    def read(self, image: int, replica: int, epoch: int) -> tuple[int, Tensor] | None:
        """The newest image of a replica that is no newer than an epoch.

        Returns:
            Its epoch, and its pixels, (1, C, H, W) float32 in [0, 1]; or None if there is none.
        """
        shard = image // self.images_per_shard
        while ready := [each for each in self.epochs(shard) if each <= epoch]:
            try:
                with safetensors.safe_open(self._path(shard, ready[-1]), "pt") as file:
                    values = file.get_tensor(f"{image}/{replica}")
            except FileNotFoundError:
                continue  # a newer one has taken its place meanwhile
            return ready[-1], values.float() / 255 if values.dtype == torch.uint8 else values
        return None

    def drop_older(self, shard: int, epoch: int) -> None:
        """Delete what is not needed in this epoch or later: all but the newest up to it."""
        for old in [each for each in self.epochs(shard) if each <= epoch][:-1]:
            self._path(shard, old).unlink(missing_ok=True)

    def _path(self, shard: int, epoch: int) -> Path:
        return self.folder / str(shard) / f"{epoch}.safetensors"


class Prefetcher:
    """A pool of synthetic images, and the process that keeps it fresh.

    The pool lies in the folder for temporary files (``$TMPDIR``) and is deleted at the end. Of each
    image it holds the newest epoch that is ready, and those ahead.

    Args:
        make: from numbers of seed images and an epoch to all their replicas; sent to the process.
        images, images_per_shard: as in `ImagePool`.
        epoch: the current epoch, 0-d int64 in shared memory.
        prefetch_epochs: how many epochs the process may be ahead of it, >= 0.
    """

    def __init__(
        self, make: Callable[[Sequence[int], int], Replicas], images: int, images_per_shard: int,
        epoch: Tensor, prefetch_epochs: int,
    ):
        folder = Path(tempfile.mkdtemp(prefix="dreamda-prefetch-"))
        self.pool = ImagePool(folder, images, images_per_shard)
        self._counts = torch.zeros(_ROWS, 4, dtype=torch.int64).share_memory_()
        self._arguments = make, self.pool, epoch, prefetch_epochs, torch.get_num_threads()
        self._owner = os.getpid()
        self._start()

    def _start(self) -> None:
        self._process: Any = torch.multiprocessing.get_context("spawn").Process(
            target=_produce, args=self._arguments, daemon=True, name="dreamda-prefetch")
        self._finalizer = weakref.finalize(
            self, _stop, self._process, self.pool.folder, self._owner)
        try:
            self._process.start()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                "with prefetch_epochs the dataset is sent to another process, and something in it "
                f"cannot be ({error}). Lambdas and classes made in functions are usual reasons: "
                "name the function in a module, or use prefetch_epochs=0."
            ) from error

    def _has_died(self) -> bool:
        """Whether the process has ended by itself; False in the workers of a DataLoader."""
        is_own = self._process is not None and os.getpid() == self._owner
        return is_own and not self._process.is_alive()

    def take(self, image: int, replica: int, epoch: int) -> tuple[int, Tensor] | None:
        """The newest image that is no newer than the epoch, as `ImagePool.read` gives it."""
        found, info = self.pool.read(image, replica, epoch), get_worker_info()
        age = None if found is None else epoch - found[0]
        self._counts[0 if info is None else (info.id + 1) % _ROWS] += torch.tensor(
            [age == 0, bool(age), age is None, age or 0])
        return found

    def freshness(self, epoch: int) -> Freshness:
        """What was served since `begin_epoch`."""
        fresh, older, made, ages = self._counts.sum(0).tolist()
        return Freshness(epoch, fresh, older, made, ages / max(1, fresh + older + made))

    def begin_epoch(self) -> None:
        """Count anew, and start the process again if it has died."""
        self._counts.zero_()
        if self._has_died():
            logger.warning("%s", _DIED)
            self._start()

    def wait(self, timeout: float | None = None) -> None:
        """Wait as `AugmentedDataset.wait` does."""
        end = math.inf if timeout is None else time.monotonic() + timeout
        count = len(self.pool.shards)
        for shard in range(count):  # the order in which they are made at first
            while not self.pool.epochs(shard):
                if self._has_died():
                    raise GenerationError(_DIED)
                if time.monotonic() > end:
                    raise TimeoutError(
                        f"{shard} of {count} parts of the pool are ready after {timeout:g} s; wait "
                        "longer, or train: missing images are made on demand.")
                time.sleep(0.02)

    def close(self) -> None:
        """Stop the process and delete the pool, if this process has started them."""
        if self._process is not None:
            self._finalizer()

    def __getstate__(self) -> dict[str, Any]:
        # a worker reads; the process that started the other one looks after it
        return {**self.__dict__, "_arguments": (), "_process": None, "_finalizer": None}


def _stop(process: Any, folder: Path, owner: int) -> None:
    """End the process and delete its pool; does nothing in a forked copy of the owner."""
    if os.getpid() == owner:
        if process.is_alive():
            process.kill()
            process.join()
        shutil.rmtree(folder, ignore_errors=True)


def _produce(
    make: Callable[[Sequence[int], int], Replicas], pool: ImagePool, epoch: Tensor,
    prefetch_epochs: int, threads: int,
) -> None:
    """Keep a pool fresh until the process that started this one ends.

    Shards take turns, so that every image has its own where training is faster than this process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    torch.set_num_threads(threads)
    parent, shards, idle = multiprocessing.parent_process(), pool.shards, 0
    there = [set(pool.epochs(shard)) for shard in range(len(shards))]
    for shard in cycle(range(len(shards))):
        if parent is None or not parent.is_alive():
            break
        now = int(epoch)
        lacking = [each for each in range(now, now + prefetch_epochs + 1)
                   if each not in there[shard]]
        if lacking:
            pool.write(shard, lacking[0], make(shards[shard], lacking[0]))
            pool.drop_older(shard, now)
            there[shard], idle = set(pool.epochs(shard)), 0
        elif (idle := idle + 1) > len(shards):
            time.sleep(0.05)
    shutil.rmtree(pool.folder, ignore_errors=True)  # the process that would do so was killed
