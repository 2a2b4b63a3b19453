"""Progress bars for what takes longer than two seconds; silent where there is no terminal."""

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
    """The items, with a bar on standard error while they are worked off.

    Args:
        items: what is iterated over.
        name: what is being done, for the bar.
        total: how many there are; None: as ``len`` says.
        unit: what they are called.
        shown: False: no bar, such as in all processes but one.
    """
    yield from tqdm(items, name, total, unit=f" {unit}", disable=None if shown else True,
                    leave=False, delay=_DELAY_SECONDS)


@contextmanager
def bar(name: str, total: int, unit: str, *, shown: bool = True) -> Iterator["tqdm[None]"]:
    """A bar that is moved by hand, with ``update(count)``.

    Args:
        name: what is being done.
        total: how much there is to do.
        unit: what it is counted in.
        shown: as above.
    """
    with tqdm(desc=name, total=total, unit=f" {unit}", disable=None if shown else True,
              leave=False, delay=_DELAY_SECONDS) as moved:
        yield moved
