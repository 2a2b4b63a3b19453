"""How far an expansion is."""

import time
from collections.abc import Callable
from typing import Literal, NamedTuple


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


class Report:
    """Calls a user's ``progress`` while samples are checked, and then while they are made.

    Args:
        progress: the user's function, or None.
        total: samples that this process is to make.
        started: when it was started, by `time.perf_counter`.
    """

    def __init__(
        self, progress: Callable[[Progress], None] | None, total: int, started: float
    ):
        self._progress, self._total, self._started = progress, total, started
        self._checked = self._before = 0

    def checked(self, samples: int) -> None:
        """Another ``samples`` were compared with their digests."""
        self._checked += samples
        self._call(Progress(self._checked, self._total, 0, self._seconds(), "checking"))

    def begin(self, before: int) -> None:
        """Checking is over, and ``before`` samples are there."""
        self._before = before
        self._call(Progress(before, self._total, 0, self._seconds()))

    def made(self, made: int) -> None:
        """By now ``made`` samples were made."""
        self._call(Progress(self._before + made, self._total, made, self._seconds()))

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _call(self, progress: Progress) -> None:
        if self._progress:
            self._progress(progress)
