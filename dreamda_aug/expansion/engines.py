"""Processes that share an expansion: which one this is, how it computes, and those of Ray."""

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import torch

from dreamda_aug.arguments import checked, whole
from dreamda_aug.errors import ExpansionError

# Where launchers name the number of processes: torchrun, and kinds of MPI.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# How often a batch is tried, if the processes that make it die.
_ATTEMPTS = 3


class Progress(NamedTuple):
    """How far one process is.

    Attributes:
        done: samples of this process that are on disk.
        total: samples that this process is to make.
        made: samples made since it was started.
        stage: ``"checking"`` while samples of an earlier run are compared with their digests, and
            ``done`` counts those; then ``"making"``.
    """

    done: int
    total: int
    made: int
    stage: Literal["checking", "making"] = "making"


def join_processes() -> tuple[int, int]:
    """Number of this process, and how many there are, by ``accelerate launch``, torchrun or MPI.

    Among several, accelerate also chooses this process's device.
    """
    if all(int(os.environ.get(name, "1")) == 1 for name in _SIZES):
        return 0, 1
    from accelerate import PartialState

    # without cpu=True, accelerate treats each process without a GPU as the only one
    state = PartialState(cpu=not torch.accelerator.is_available())
    return state.process_index, state.num_processes


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


class RayEngine:
    """An engine on Ray: processes that hold the model, and take batches as they are free.

    Processes write to the dataset's folder themselves, so every node must see it. A process that
    dies is started again by Ray, and only its own batch is made again. At most one batch per
    process is under way, however many are to come.

    Args:
        address: of a cluster, as ``"auto"`` or ``"ray://HOST:PORT"``, or None to start Ray on this
            machine, or use the one that runs in this process already.
        workers: processes, or None for as many as the cluster has room for, one for each
            accelerator, or as CPU threads allow; there are never more.

    Raises:
        ImportError: Ray is not installed.
        ValueError: ``workers`` is no number above 0.

    Source: ours.
    """

    @checked
    def __init__(self, address: str | None = None, workers: int | None = None):
        self.address = address
        self.workers = None if workers is None else whole("workers", workers, 1)
        _import_ray()

    def run(
        self, open_maker: Callable[[], Callable[[int], None]], batches: Sequence[int],
        done: Callable[[int], None], threads: int | None,
    ) -> None:
        """Make every batch, in any order; ExpansionError if that failed.

        ``open_maker`` goes through pickle. In each process it loads the model, and returns a
        function that makes a batch and writes it; ``done`` is called here with the number of each
        batch that is on disk. Without ``threads``, a process computes on an accelerator.
        """
        ray = _import_ray()
        errors, died = ray.exceptions, dict[int, str]()
        with _connected(ray, self.address):
            resources, cpus = ray.cluster_resources(), threads or 1
            room = int(resources.get("CPU", 1) // cpus if threads else resources.get("GPU", 0))
            # one copy for all processes, not one in each call
            opening = ray.put((open_maker, os.getcwd()))
            worker = ray.remote(num_cpus=cpus, num_gpus=0 if threads else 1, max_restarts=-1,
                                max_task_retries=_ATTEMPTS - 1)(BatchWorker)
            # processes that there is no room for would wait, and their batches with them
            count = max(1, min(self.workers or room, room, len(batches)))
            left, free = list(batches)[::-1], [worker.remote(opening) for _ in range(count)]
            running: dict[Any, tuple[int, Any]] = {}
            while left or running:
                while left and free:
                    batch, process = left.pop(), free.pop()
                    running[process.make.remote(batch)] = batch, process
                (future,), _ = ray.wait(list(running))
                batch, process = running.pop(future)
                free.append(process)
                try:
                    ray.get(future)
                except (errors.RayActorError, errors.NodeDiedError,
                        errors.OutOfMemoryError) as error:
                    died[batch] = _first_line(error)
                except errors.RayTaskError as error:
                    raise getattr(error, "cause", None) or error from None
                else:
                    done(batch)
        for batch, reason in died.items():
            raise ExpansionError(
                f"batch {batch}: its process died {_ATTEMPTS} times ({reason}). What was made is "
                "kept; look for too little memory, then run the same command again.")


class BatchWorker:
    """Lives in each process; loads the model at its first batch, in the folder of the starter."""

    def __init__(self, opening: tuple[Callable[[], Callable[[int], None]], str]):
        self._opening = opening
        self._make: Callable[[int], None] | None = None

    def make(self, batch: int) -> None:
        """Make a batch and write it."""
        if self._make is None:
            open_maker, folder = self._opening
            with suppress(OSError):  # another machine may have no such folder
                os.chdir(folder)
            self._make = open_maker()
        self._make(batch)


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A running Ray: that of this process, that of an address, or one started for the block."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    try:
        if address is None:
            # "local" starts one even where $RAY_ADDRESS names a cluster
            ray.init(address="local", include_dashboard=False, **options)
        else:
            # Ray itself would try for minutes where nobody listens
            host = urlsplit(address if "//" in address else f"//{address}")
            if host.hostname and host.port:
                socket.create_connection((host.hostname, host.port), timeout=10).close()
            ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ExpansionError(
            f"Ray at {address or 'this machine'} could not be reached ({_first_line(error)}). "
            "Start it with `ray start --head`, or leave --address out.") from error
    try:
        yield
    finally:
        ray.shutdown()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError("the engine 'ray' needs an extra package: pip install "
                          "'dreamda_aug[ray]'.") from error
    return ray
