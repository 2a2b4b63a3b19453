"""Filters that go to other processes by name."""

from dataclasses import dataclass, field
from typing import Any

from dreamda_aug.expansion.filters import Batch, Filter, open_filter
from dreamda_aug.inputs.sources import Source
from dreamda_aug.models import DiffusionModel


@dataclass
class ReopenedFilter:
    """A filter that each process opens for itself: a classifier's program has no pickle.

    Args:
        text: as in `open_filter`.
        class_count: as in `open_filter`.
    """

    text: str
    class_count: int
    _opened: Filter | None = field(default=None, repr=False, compare=False)

    @property
    def opened(self) -> Filter:
        """The filter itself; the first use opens it."""
        if self._opened is None:
            self._opened = open_filter(self.text, self.class_count)
        return self._opened

    @property
    def name(self) -> str:
        return self.opened.name

    def describe(self) -> dict[str, Any]:
        return self.opened.describe()

    def prepare(self, source: Source, model: DiffusionModel) -> None:
        self.opened.prepare(source, model)

    def measure(self, batch: Batch) -> tuple[list[float], list[bool]]:
        return self.opened.measure(batch)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}
