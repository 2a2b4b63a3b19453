"""Checks of the arguments that users give: each error names argument, rule and value."""

import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import PurePath
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin

_P = ParamSpec("_P")
_R = TypeVar("_R")
# Numbers beyond these fit into no file format and no tensor.
_MAX_INTEGER = 2**63 - 1
_MAX_SHOWN = 200
_UNIONS = (typing.Union, types.UnionType)
_WORDS = {bool: "True or False", int: "an integer", float: "a finite number", str: "text",
          types.NoneType: "None", Callable: "a function"}
_PLURALS = {bool: "truth values", int: "integers", float: "finite numbers", str: "texts"}


_hints = functools.cache(typing.get_type_hints)


class _NoMatch(Exception):
    """A value is not of the annotated type."""


def checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Check the arguments of each call against the annotations of the function.

    Numbers must be finite, integers fit into 64 bits, and booleans are no integers. numpy's
    scalars become Python's, and arrays become lists where numbers are annotated. ``Any``,
    protocols that are not ``runtime_checkable``, ``*args`` and ``**kwargs`` are not checked, and
    neither are torch's ``Dataset``s, since map-style datasets need no base class.

    Raises:
        ValueError: by the decorated function, for an argument of another type.
    """
    signature = inspect.signature(function)
    names = [name for name, each in signature.parameters.items()
             if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python's own error names the function
        hints = _hints(function)
        for name in names:
            if name in hints and name in bound.arguments:
                bound.arguments[name] = check(name, bound.arguments[name], hints[name])
        return function(*bound.args, **bound.kwargs)

    return wrapper


def check_fields(instance: Any) -> None:
    """Check the fields of a dataclass as `checked` does; for its ``__post_init__``."""
    hints = _hints(instance.__class__)
    for field in fields(instance):
        value = check(field.name, getattr(instance, field.name), hints[field.name])
        object.__setattr__(instance, field.name, value)


def check(name: str, value: Any, annotation: Any) -> Any:
    """The value, with numpy's scalars as Python's, if it is of the annotated type.

    Raises:
        ValueError: it is not.
    """
    try:
        return _matched(value, annotation)
    except _NoMatch:
        *first, last = dict.fromkeys(_alternatives(annotation))
        allowed = f"{', '.join(first)} or {last}" if first else last
        raise ValueError(f"{name} must be {allowed}, got {shown(value)}.") from None


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The value as an int if it is an integer in [least, most], numpy's included.

    Raises:
        ValueError: it is something else; None for ``most`` allows any of 64 bits.
    """
    upper = "" if most is None else f" and <= {most}"
    return int(_within(name, value, int, f"be an integer >= {least}{upper}", least,
                       _MAX_INTEGER if most is None else most))


def real(name: str, value: Any, rule: str, low: float, high: float = math.inf) -> float:
    """The value as a float if it is a finite number in [low, high], numpy's included.

    Raises:
        ValueError: it is something else; the message has ``rule`` behind "must".
    """
    return _within(name, value, float, rule, low, high)


def _within(name: str, value: Any, kind: type, rule: str, low: float, high: float) -> Any:
    with suppress(_NoMatch):
        if low <= (found := _number(value, kind)) <= high:
            return found
    raise ValueError(f"{name} must {rule}, got {shown(value)}.")


def shown(value: Any) -> str:
    """The value's repr, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integers of more than 4,300 digits
        return f"an integer of {int(value).bit_length():,} bits"
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _matched(value: Any, annotation: Any) -> Any:
    """The value as the annotation has it; _NoMatch if it is of another type."""
    kind, inside = get_origin(annotation) or annotation, get_args(annotation)
    if kind in _UNIONS:
        for each in inside:
            with suppress(_NoMatch):
                return _matched(value, each)
        raise _NoMatch
    if kind is Literal:
        for allowed in inside:
            if isinstance(value, type(allowed)) and value == allowed:
                return allowed
        raise _NoMatch
    if kind in (bool, int, float):
        return _number(value, kind)
    if kind is Callable:
        fits = callable(value)
    elif kind is Any or not isinstance(kind, type) or _is_unchecked(kind):
        return value
    elif _is_collection(kind):
        return _collection(value, kind, inside)
    else:
        # a module that torch.compile has wrapped stays one of its class
        fits = isinstance(getattr(value, "_orig_mod", value),
                          os.PathLike if issubclass(kind, PurePath) else kind)
    if not fits:
        raise _NoMatch
    if issubclass(kind, Mapping) and inside:
        return {_matched(key, inside[0]): _matched(item, inside[1]) for key, item in value.items()}
    return value


def _number(value: Any, kind: type) -> Any:
    if kind is bool:
        from numpy import bool_  # not above: it would double the time of `dreamda --help`

        if isinstance(value, bool | bool_):
            return bool(value)
    if isinstance(value, bool):
        raise _NoMatch
    if kind is int and isinstance(value, numbers.Integral) and abs(int(value)) <= _MAX_INTEGER:
        return int(value)
    if kind is float and isinstance(value, numbers.Real):
        with suppress(OverflowError):
            if math.isfinite(number := float(value)):
                return number
    raise _NoMatch


def _collection(value: Any, kind: type, inside: tuple[Any, ...]) -> Any:
    """The collection, or the numbers of an array; text is none."""
    is_array = hasattr(value, "tolist")  # numpy's or torch's
    expected = Sequence if issubclass(kind, Sequence) else kind
    if isinstance(value, str | bytes | Mapping) or not (is_array or isinstance(value, expected)):
        raise _NoMatch
    if not inside or inside[0] is Any:
        return value
    items = value.tolist() if is_array else list(value)
    if not isinstance(items, list):  # an array without a dimension
        raise _NoMatch
    if kind is tuple and inside[-1] is not Ellipsis:
        if len(items) != len(inside):
            raise _NoMatch
        return tuple(map(_matched, items, inside))
    found = [_matched(item, inside[0]) for item in items]
    # a sequence of the caller's own stays what it is
    same = not is_array and all(map(lambda one, other: one is other, found, items))
    return tuple(found) if kind is tuple else value if same else found


def _is_collection(kind: type) -> bool:
    return (issubclass(kind, Collection) and not issubclass(kind, str | Mapping)
            and kind.__module__ in ("builtins", "collections.abc"))


def _is_unchecked(kind: type) -> bool:
    if getattr(kind, "_is_protocol", False):
        return not getattr(kind, "_is_runtime_protocol", False)
    return kind.__name__ == "Dataset" and kind.__module__.startswith("torch.")


def _alternatives(annotation: Any) -> list[str]:
    """What an annotation allows, in words."""
    kind, inside = get_origin(annotation) or annotation, get_args(annotation)
    if kind in _UNIONS:
        return [words for each in inside for words in _alternatives(each)
                if not getattr(each, "_is_protocol", False)]
    if kind is Literal:
        return list(map(repr, inside))
    if kind in _WORDS:
        return [_WORDS[kind]]
    if issubclass(kind, PurePath | Mapping):
        return ["a path" if issubclass(kind, PurePath) else "a dict"]
    if _is_collection(kind):
        several = _PLURALS.get(inside[0], "values") if inside else "values"
        is_fixed = kind is tuple and inside[-1:] != (Ellipsis,)
        return [f"{len(inside)} {several}" if is_fixed else f"a list of {several}"]
    return [f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"]
