"""Which of several processes this one is, and how many threads it computes with."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import PartialState

# Where engines say how many processes there are: torchrun, and kinds of MPI.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def join_processes() -> tuple[int, int]:
    """Number of this process, and how many there are, by ``accelerate launch``, torchrun or MPI.

    Among several, accelerate also chooses this process's device.
    """
    if all(int(os.environ.get(name, "1")) == 1 for name in _SIZES):
        return 0, 1
    state = _state()
    return state.process_index, state.num_processes


def check_shard(shard: tuple[int, int]) -> tuple[int, int]:
    """The shard, if it is one; else a ValueError."""
    number, count = shard
    if not 0 <= number < count:
        raise ValueError(f"shard must be (number, count) with number < count, got {shard}.")
    return number, count


def first_process_first(count: int, shard: tuple[int, int] | None) -> AbstractContextManager[None]:
    """The first process goes through the block before the others."""
    if count == 1:
        return nullcontext()
    if shard is not None:
        raise ValueError("new: set the old result aside with one process, then start the shards.")
    in_turn: AbstractContextManager[None] = _state().main_process_first()
    return in_turn


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with ``count`` threads inside the block; None: as many as before."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _state() -> "PartialState":
    from accelerate import PartialState

    # without cpu=True, accelerate treats each process without a GPU as the only one
    return PartialState(cpu=not torch.accelerator.is_available())
