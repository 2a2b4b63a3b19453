"""Units on the processes of a Ray cluster, or of this machine."""

import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from dreamda_aug.arguments import whole
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.engine import Job

logger = logging.getLogger(__name__)

# How often a unit may take its process with it before the work is given up.
_ATTEMPTS = 3
# After so long without any process at work, a message says what is waited for.
_PATIENCE_SECONDS = 60.0


class RayEngine:
    """An engine on Ray: processes that hold the model, and take units as they are free.

    Processes write to the dataset's folder themselves, so it must lie where every node sees it. A
    process that dies is replaced, and only its own unit is made again, there or elsewhere. At most
    one unit per process is under way, however many are to come.

    Args:
        address: of a cluster: ``"auto"`` or ``"ray://HOST:PORT"``; None: Ray is started on this
            machine, or the one that runs in this process already is used.
        workers: processes; None: as many as there are accelerators, or as CPU threads allow.

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
        """Make every unit; see `Engine`."""
        ray = _import_ray()
        with _connected(ray, self.address):
            needs = {"num_cpus": job.threads or 1, "num_gpus": 0 if job.threads else 1}
            workers = self.workers or _room(ray.cluster_resources(), needs)
            # one copy for all processes, not one in each call
            opening = ray.put((job.open, os.getcwd()))
            worker = ray.remote(**needs, max_restarts=0)(BatchWorker)
            make_batches(job.units, lambda: worker.remote(opening), workers, job.done)


class BatchWorker:
    """What lives in each process.

    Args:
        opening: a job's ``open``, and the folder that relative paths are meant from.
    """

    def __init__(self, opening: tuple[Callable[[], Callable[[int], None]], str]):
        opened, folder = opening
        with suppress(OSError):  # another machine may have no such folder
            os.chdir(folder)
        self._make = opened()

    def ready(self) -> None:
        """Returns once the model is loaded."""

    def make(self, unit: int) -> None:
        """Make a unit and write it."""
        self._make(unit)


def make_batches(
    units: Iterable[int], hire: Callable[[], Any], workers: int, done: Callable[[int], None]
) -> None:
    """Give units to Ray actors, one at a time, until all are done.

    Args:
        units: their numbers; taken as they are needed.
        hire: starts an actor with the methods of `BatchWorker`.
        workers: how many actors work at a time.
        done: called with each unit that is done.

    Raises:
        ExpansionError: a unit, or the start of an actor, fails again and again.
    """
    ray = _import_ray()
    dead = (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError,
            ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError)
    coming, again = iter(units), deque[int]()
    starting: dict[Any, Any] = {}
    running: dict[Any, tuple[Any, int]] = {}
    idle: list[Any] = []
    deaths: Counter[int | str] = Counter()

    def start() -> None:
        actor = hire()
        starting[actor.ready.remote()] = actor

    def give(actor: Any) -> None:
        unit = again.popleft() if again else next(coming, None)
        if unit is None:
            idle.append(actor)
        else:
            running[actor.make.remote(unit)] = actor, unit

    def died(what: int | str, error: Exception) -> None:
        deaths[what] += 1
        if deaths[what] >= _ATTEMPTS:
            name = f"batch {what}" if isinstance(what, int) else what
            raise ExpansionError(
                f"{name}: its process died {_ATTEMPTS} times ({_first_line(error)}). What was made "
                "is kept; look for too little memory, then run the same command again."
            ) from error
        logger.warning("a process died (%s); another one takes its place", _first_line(error))

    try:
        for _ in range(workers):
            start()
        while running or again or (starting and not idle):
            for actor in [idle.pop() for _ in range(min(len(again), len(idle)))]:
                give(actor)
            finished, _ = ray.wait([*starting, *running], num_returns=1,
                                   timeout=_PATIENCE_SECONDS)
            if not finished:
                if not running:
                    logger.warning("waiting for room: the cluster has %s free",
                                   ray.available_resources())
                continue
            reference, = finished
            if reference in starting:
                actor = starting.pop(reference)
                try:
                    ray.get(reference)
                except dead as error:
                    died("the start of a process", error)
                    start()
                except ray.exceptions.RayTaskError as error:
                    raise _cause(error) from None
                else:
                    deaths.pop("the start of a process", None)
                    give(actor)
                continue
            actor, unit = running.pop(reference)
            try:
                ray.get(reference)
            except dead as error:
                again.append(unit)
                died(unit, error)
                start()
            except ray.exceptions.RayTaskError as error:
                raise _cause(error) from None
            else:
                done(unit)
                give(actor)
    finally:
        for actor in [*starting.values(), *(actor for actor, _ in running.values()), *idle]:
            ray.kill(actor)


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A running Ray: that of this process, that of an address, or one started for the block."""
    if ray.is_initialized():
        yield
        return
    try:
        if address is None:
            # "local" starts one even where $RAY_ADDRESS names a cluster
            ray.init(address="local", include_dashboard=False, log_to_driver=False,
                     configure_logging=False)
        else:
            _knock(address)
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ExpansionError(
            f"Ray at {address or 'this machine'} could not be reached ({_first_line(error)}). "
            "Start it with `ray start --head`, or leave --address out."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise where nobody listens: Ray itself would go on trying for minutes."""
    place = urlsplit(address if "//" in address else f"//{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=10).close()


def _room(resources: dict[str, float], needs: dict[str, int]) -> int:
    """How many processes a cluster has room for, at least one."""
    if needs["num_gpus"]:
        return max(1, int(resources.get("GPU", 0)))
    return max(1, int(resources.get("CPU", 1)) // needs["num_cpus"])


def _cause(error: Any) -> BaseException:
    """The exception that was raised in the other process."""
    cause: BaseException = getattr(error, "cause", None) or error
    return cause


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

