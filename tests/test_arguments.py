"""The check of argument types against annotations."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from dreamda_aug.arguments import checked, real, whole


class Sized(Protocol):
    def size(self) -> int: ...


@runtime_checkable
class Named(Protocol):
    name: str


@checked
def door(
    first: Any = 0, *rest: int, whole: int = 0, part: float = 0.0, flag: bool = False,
    word: Literal["a", "b"] | None = None, text: str | Callable[[int], str] = "",
    place: str | Path | None = None, names: Sequence[str] | None = None,
    numbers: Sequence[float] = (), pair: tuple[int, int] | None = None,
    ratio: int | Mapping[str, int] = 1, device: torch.device | str | None = None,
    sized: Sized | None = None, named: Named | None = None, data: Dataset[Any] | None = None,
    chosen: Collection[int] = (), **options: int,
) -> dict[str, Any]:
    """What it was given."""
    return {name: value for name, value in locals().items() if name not in ("first", "rest")}


HUGE = 10**5000
BAD = {
    "whole": ["", "1", 1.0, True, None, math.nan, 1j, [1], 2**63, HUGE, np.float32(1),
              np.array([1]), torch.tensor(1)],
    "part": ["", "0.5", True, None, math.nan, -math.inf, 1j, 10**400, np.float32("nan"), [0.5]],
    "flag": [0, 1, "yes", None, np.int64(1), [True]],
    "word": ["c", "", 1, ["a"], {"a": 1}, math.nan],
    "text": [math.nan, None, 3, b"x", ["x"], Path("x")],
    "place": [3, b"x", ["x"], math.nan],
    "names": ["cat", b"cat", ["cat", 3], [None], {"cat": 1}, {"cat"}, 3, np.array([1])],
    "numbers": ["1", [1, "2"], [math.nan], [True], 1.0, np.array([math.inf]), np.float64(1)],
    "pair": [3, (1,), (1, 2, 3), (1, 2.5), "12"],
    "ratio": [1.5, {"cat": 1.5}, {3: 1}, [("cat", 1)], True, math.nan],
    "device": [0, 1.5, ["cpu"]],
    "named": [3, "x", [1]],
    "chosen": [3, {1.5}, "1"],
}


@pytest.mark.parametrize("name, value", [(n, v) for n, values in BAD.items() for v in values],
                         ids=lambda value: None if isinstance(value, str) else type(value).__name__)
def test_a_value_of_another_type_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .+, got .+\.$"):
        door(**{name: value})


@pytest.mark.parametrize("name, value, kept", [
    ("whole", np.int64(3), 3), ("part", 3, 3.0), ("part", np.float16(0.5), 0.5),
    ("flag", np.bool_(True), True), ("word", np.str_("a"), "a"), ("word", None, None),
    ("pair", [1, np.int8(2)], (1, 2)), ("numbers", np.array([0.5, 1.0]), [0.5, 1.0]),
    ("numbers", torch.tensor([0.5]), [0.5]), ("numbers", (1, 2.5), [1.0, 2.5]),
    ("ratio", {"cat": np.int32(2)}, {"cat": 2}), ("ratio", np.uint8(4), 4),
    ("chosen", {1, 2}, {1, 2}), ("options", {"other": 3.5}, {"other": 3.5}),
])
def test_a_fitting_value_is_a_python_value(name, value, kept):
    found = door(**(value if name == "options" else {name: value}))[name]
    assert found == kept and type(found) in (type(kept), set)
    if isinstance(kept, list):
        assert {type(each) for each in found} == {float}


def test_arguments_that_do_not_fit_the_signature_are_refused_as_python_does():
    with pytest.raises(TypeError, match=r"^door\(\) got multiple values for argument 'first'"):
        door(1, first=1)


def test_the_message_lists_what_is_allowed():
    for name, value, words in (
        ("word", 3, "'a', 'b' or None, got 3"), ("names", "cat", "a list of texts or None"),
        ("pair", 3, "2 integers or None"), ("ratio", "x", "an integer or a dict"),
        ("device", 3, "a device, text or None"), ("text", 3, "text or a function"),
        ("place", 3, "text, a path or None"), ("whole", HUGE, "got an integer of 16,610 bits"),
        ("names", [3] * 999, r"got \[3, 3, .*\.\.\.\."),
    ):
        with pytest.raises(ValueError, match=words):
            door(**{name: value})


def test_ranges_are_checked_beside_types():
    assert whole("n", np.uint16(5), 1) == 5 and real("x", 1, "lie in [0, 1]", 0, 1) == 1.0
    for value in (0, 9, "5", 5.0, True, HUGE):
        with pytest.raises(ValueError, match=r"^n must be an integer >= 1 and <= 8, got"):
            whole("n", value, 1, 8)
    for value in (-0.1, 1.1, math.nan, "0.5", True, HUGE, None):
        with pytest.raises(ValueError, match=r"^x must lie in \[0, 1\], got"):
            real("x", value, "lie in [0, 1]", 0, 1)
    with pytest.raises(ValueError, match="n must be an integer >= 1, got"):
        whole("n", 2**63, 1)
