"""Batches on the processes of a Ray cluster, or of this machine."""

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from dreamda_aug.arguments import whole
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.sharding import Job

logger = logging.getLogger(__name__)

# How often a batch, or the start of a process, may fail before the work is given up.
_ATTEMPTS = 3
# After so long without any process at work, a message names what is waited for.
_PATIENCE_SECONDS = 60.0


class RayEngine:
    """An engine on Ray: processes that hold the model, and take batches as they are free.

    Processes write to the dataset's folder themselves, so every node must see it. A process that
    dies is replaced, and only its own batch is made again, there or elsewhere. At most one batch
    per process is under way, however many are to come.

    Args:
        address: of a cluster, as ``"auto"`` or ``"ray://HOST:PORT"``, or None to start Ray on this
            machine, or use the one that runs in this process already.
        workers: processes, or None for as many as there are accelerators, or as CPU threads allow.

    Raises:
        ImportError: Ray is not installed.
        ValueError: ``workers`` is no number above 0.

    Source: ours.
    """

    def __init__(self, address: str | None = None, workers: int | None = None):
        self.address = address
        self.workers = None if workers is None else whole("workers", workers, 1)
        _import_ray()

    def run(self, job: Job) -> None:
        """Make every batch; see `Engine`."""
        ray = _import_ray()
        with _connected(ray, self.address):
            needs = {"num_cpus": job.threads or 1, "num_gpus": 0 if job.threads else 1}
            # one copy for all processes, not one in each call
            opening = ray.put((job.open, os.getcwd()))
            worker = ray.remote(**needs, max_restarts=0)(BatchWorker)
            make_batches(job.batches, lambda: worker.remote(opening),
                         self.workers or _room(ray.cluster_resources(), needs), job.done)


class BatchWorker:
    """What lives in each process; opened by a job's ``open`` in the folder it was started from."""

    def __init__(self, opening: tuple[Callable[[], Callable[[int], None]], str]):
        opened, folder = opening
        with suppress(OSError):  # another machine may have no such folder
            os.chdir(folder)
        self._make = opened()

    def ready(self) -> None:
        """Returns once the model is loaded."""

    def make(self, batch: int) -> None:
        """Make a batch and write it."""
        self._make(batch)


def make_batches(
    batches: Sequence[int], hire: Callable[[], Any], workers: int, done: Callable[[int], None]
) -> None:
    """Give batches to Ray actors that ``hire`` starts, one at a time, until all are done.

    ``ray.util.ActorPool`` does not tell whose call failed, so it could replace no actor.
    """
    ray = _import_ray()
    errors = ray.exceptions
    dead = (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError,
            errors.OutOfMemoryError)
    left, again, coming = len(batches), deque[int](), iter(batches)
    # call -> actor and batch; None while the actor starts
    running: dict[Any, tuple[Any, int | None]] = {}
    deaths: Counter[int | None] = Counter()

    def start() -> None:
        actor = hire()
        running[actor.ready.remote()] = actor, None

    try:
        for _ in range(workers):
            start()
        while left:
            finished, _ = ray.wait([*running], num_returns=1, timeout=_PATIENCE_SECONDS)
            if not finished:
                if all(batch is None for _, batch in running.values()):
                    logger.warning("waiting for room: the cluster has %s free",
                                   ray.available_resources())
                continue
            call, = finished
            actor, batch = running.pop(call)
            try:
                ray.get(call)
            except dead as error:
                deaths[batch] += 1
                if deaths[batch] >= _ATTEMPTS:
                    name = "the start of a process" if batch is None else f"batch {batch}"
                    raise ExpansionError(
                        f"{name}: its process died {_ATTEMPTS} times ({_first_line(error)}). What "
                        "was made is kept; look for too little memory, then run the same command "
                        "again."
                    ) from error
                logger.warning("a process died (%s); another one takes its place",
                               _first_line(error))
                again.extend(() if batch is None else (batch,))
                start()
                continue
            except errors.RayTaskError as error:
                raise getattr(error, "cause", None) or error from None
            if batch is None:
                deaths.pop(None, None)
            else:
                left -= 1
                done(batch)
            batch = again.popleft() if again else next(coming, None)
            if batch is None:
                ray.kill(actor)
            else:
                running[actor.make.remote(batch)] = actor, batch
    finally:
        for actor, _ in running.values():
            ray.kill(actor)


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
            "Start it with `ray start --head`, or leave --address out."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _room(resources: dict[str, float], needs: dict[str, int]) -> int:
    """How many processes a cluster has room for, at least one."""
    if needs["num_gpus"]:
        return max(1, int(resources.get("GPU", 0)))
    return max(1, int(resources.get("CPU", 1)) // needs["num_cpus"])


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "the engine 'ray' needs an extra package: pip install 'dreamda_aug[ray]'."
        ) from error
    return ray
