"""Checks of the arguments that users give: each error names argument, rule and value."""

import math
import numbers
from typing import Any


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The value as an int, if it is a whole number in a range; numpy's integers are too.

    Args:
        name: of the argument, for the message.
        value: what was given.
        least: the smallest number allowed.
        most: the largest number allowed; None: any.

    Raises:
        ValueError: it is something else, or outside the range.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or int(value) < least or (most is not None and int(value) > most):
        upper = "" if most is None else f" and <= {most}"
        raise ValueError(f"{name} must be an integer >= {least}{upper}, got {value!r}.")
    return int(value)


def real(name: str, value: Any, rule: str, low: float, high: float = math.inf) -> float:
    """The value as a float, if it is a finite number in [low, high]; numpy's scalars are too.

    Args:
        name: of the argument, for the message.
        value: what was given.
        rule: what the message says it must do.
        low: the smallest number allowed.
        high: the largest number allowed.

    Raises:
        ValueError: it is something else, or outside the range.
    """
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_real or not math.isfinite(float(value)) or not low <= float(value) <= high:
        raise ValueError(f"{name} must {rule}, got {value!r}.")
    return float(value)
