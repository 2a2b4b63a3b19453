"""Progress bars for work of more than two seconds; silent without a terminal."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

_T = TypeVar("_T")
# Shorter work shows no bar.
_DELAY_SECONDS = 2.0


def track(
    items: Iterable[_T], name: str, total: int | None = None, unit: str = "steps", *,
    shown: bool = True,
) -> Iterator[_T]:
    """The items, with a bar on standard error until they are done.

    ``total`` is ``len(items)`` by default; ``shown=False`` hides the bar, such as in all processes
    but one.
    """
    yield from tqdm(items, name, total, unit=f" {unit}", disable=None if shown else True,
                    leave=False, delay=_DELAY_SECONDS)


@contextmanager
def bar(name: str, total: int, unit: str, *, shown: bool = True) -> Iterator["tqdm[None]"]:
    """A bar that the caller moves with ``update(count)``."""
    with tqdm(desc=name, total=total, unit=f" {unit}", disable=None if shown else True,
              leave=False, delay=_DELAY_SECONDS) as moved:
        yield moved
