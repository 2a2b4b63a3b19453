"""Processes that share an expansion: which one this is, how it computes, how far it is."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch

if TYPE_CHECKING:
    from accelerate import PartialState

# Where launchers name the number of processes: torchrun, and kinds of MPI.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


class Progress(NamedTuple):
    """How far one process is.

    Attributes:
        done: samples of this process that are on disk.
        total: samples that this process is to make.
        made: samples made since it was started.
        seconds: time since it was started.
        stage: ``"checking"`` while samples of an earlier run are compared with their digests, and
            ``done`` counts those; then ``"making"``.
    """

    done: int
    total: int
    made: int
    seconds: float
    stage: Literal["checking", "making"] = "making"


class Engine(Protocol):
    """Makes batches in other processes, such as `RayEngine`."""

    def run(
        self, open_maker: Callable[[], Callable[[int], None]], batches: Sequence[int],
        done: Callable[[int], None], threads: int | None,
    ) -> None:
        """Make every batch, in any order; ExpansionError if that failed.

        Args:
            open_maker: called once in each process; loads the model, and returns a function that
                makes a batch and writes it. Goes through pickle.
            batches: their numbers.
            done: called in this process with the number of each batch that is on disk.
            threads: CPU threads that a process computes with, or None for an accelerator.
        """
        ...


def join_processes() -> tuple[int, int]:
    """Number of this process, and how many there are, by ``accelerate launch``, torchrun or MPI.

    Among several, accelerate also chooses this process's device.
    """
    if all(int(os.environ.get(name, "1")) == 1 for name in _SIZES):
        return 0, 1
    state = _state()
    return state.process_index, state.num_processes


def first_process_first(count: int) -> AbstractContextManager[None]:
    """Let the first of ``count`` processes go through the block before the others."""
    return nullcontext() if count == 1 else _state().main_process_first()


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with ``count`` threads inside the block, or None for as many as before."""
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
