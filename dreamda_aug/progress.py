"""Progress bars for work of more than two seconds; silent without a terminal."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

_T = TypeVar("_T")
# Shorter work shows no bar.
_DELAY_SECONDS = 2.0


def bar(
    name: str, total: int | None = None, unit: str = "steps", items: Iterable[_T] | None = None
) -> "tqdm[_T]":
    """A bar on standard error: the caller iterates over it, which gives the ``items``, or moves it
    with ``update(count)`` inside a ``with`` block; ``total`` is ``len(items)`` by default."""
    return tqdm(items, name, total, unit=f" {unit}", disable=None, leave=False,
                delay=_DELAY_SECONDS)
