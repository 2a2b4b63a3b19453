"""The keywords of version 0.1, put into the frozen values that hold them now."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
# Old keyword -> the argument that replaced it, the class of that argument, and its field.
Homes = Mapping[str, tuple[str, type, str]]


def sort_old_keywords(
    call: str, keywords: Mapping[str, object], homes: Homes
) -> dict[str, dict[str, Any]]:
    """Old keywords as fields of the arguments that replaced them.

    For example ``{"agreement": "all"}`` -> ``{"voting": {"agreement": "all"}}``. Arguments that
    no old keyword belongs to have an empty entry.

    Args:
        call: name of the function or class that was called, for messages.
        keywords: what it got beside its own arguments.
        homes: where each old keyword belongs.

    Raises:
        TypeError: a keyword that was never one.

    Warns:
        DeprecationWarning: once per call, with the call to write instead.
    """
    changes: dict[str, dict[str, Any]] = {argument: {} for argument, _, _ in homes.values()}
    calls: dict[str, list[str]] = {}
    for keyword, value in keywords.items():
        if keyword not in homes:
            raise TypeError(f"{call}() got an unexpected keyword argument {keyword!r}.")
        argument, kind, field = homes[keyword]
        changes[argument][field] = value
        calls.setdefault(f"{argument}={kind.__name__}", []).append(f"{field}=…")
    if keywords:
        old = ", ".join(f"{keyword}=…" for keyword in keywords)
        new = ", ".join(f"{start}({', '.join(given)})" for start, given in calls.items())
        warnings.warn(
            f"{call}({old}) is deprecated; write {call}({new}).", DeprecationWarning, stacklevel=3
        )
    return changes


def filled(name: str, value: T | None, kind: type[T], changes: Mapping[str, Any]) -> T:
    """``value``, or the default ``kind()`` for None, with some of its fields changed.

    Raises:
        TypeError: ``value`` is of another class.
    """
    if value is None:
        return kind(**changes)
    if not isinstance(value, kind):
        found, wanted = type(value).__name__, kind.__name__
        raise TypeError(f"{name} must be a {wanted}, got {found}; write {name}={wanted}(…).")
    return replace(value, **changes)
