"""What an engine is given to do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Job:
    """Units of an expansion that are to be made.

    Attributes:
        open: to be called once in each process that helps; loads the model, and returns a function
            that makes a unit and writes it. Goes through pickle.
        units: their numbers.
        done: to be called in this process with the number of each unit that is on disk.
        threads: CPU threads that a process computes with; None: it runs on an accelerator.
    """

    open: Callable[[], Callable[[int], None]]
    units: Sequence[int]
    done: Callable[[int], None]
    threads: int | None


class Engine(Protocol):
    """Runs jobs, such as `RayEngine`."""

    def run(self, job: Job) -> None:
        """Make every unit, in any order; returns when all are done.

        Raises:
            ExpansionError: the engine could not do it.
        """
        ...
