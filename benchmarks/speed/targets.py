"""What the measured ratios should be, and what they are."""

from collections.abc import Sequence
from typing import Any

from benchmarks.speed.arms import (
    ASYMMETRIC,
    IMG2IMG,
    PRESET,
    RELEASED,
    SYMMETRIC,
    TRANSFORM,
)
from benchmarks.speed.rounds import Spread, spread

# In a run of the same steps and batch size; a sample's inversion is cached.
SYMMETRIC_COST, ASYMMETRIC_COST, TRANSFORM_COST = 1.03, 1.5, 1.15
EXACT_GAIN, FAST_GAIN = 6.0, 25.0


def targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each target with its ratio.

    Args:
        rows: what `run_rounds` returned.

    Returns:
        For each: ``what``, the ratio's ``median``, ``low`` and ``high``, the ``goal``, whether it
        is a ``ceiling`` or a floor, and whether it is ``met``.
    """
    sizes = sorted({row["batch_size"] for row in rows if row["arm"] == IMG2IMG})
    largest, most = sizes[-1], max(row["replicas"] for row in rows)
    found = []
    for size in sizes:
        for name, goal in ((SYMMETRIC, SYMMETRIC_COST), (ASYMMETRIC, ASYMMETRIC_COST)):
            found.append(_target(
                f"{name}, to {IMG2IMG}, batch {size}",
                between(rows, (name, size), (IMG2IMG, size)), goal, ceiling=True))
    found.append(_target(f"{TRANSFORM}, to {SYMMETRIC} in batches of {largest}",
                         between(rows, (TRANSFORM, 1), (SYMMETRIC, largest)), TRANSFORM_COST,
                         ceiling=True))
    released = RELEASED.format(rows=4)
    for name, goal in (("official", EXACT_GAIN), ("fast", FAST_GAIN)):
        arm = PRESET.format(name=name, replicas=most)
        if {arm, released} <= {row["arm"] for row in rows}:
            found.append(_target(f"{released}, to {arm}, batch {largest}",
                                 between(rows, (released, 1), (arm, largest)), goal,
                                 ceiling=False))
    return found


def between(
    rows: Sequence[dict[str, Any]], over: tuple[str, int], under: tuple[str, int]
) -> Spread:
    """How many times as long an arm takes per image as another, each by name and batch size."""
    times = {(row["arm"], row["batch_size"]): row["times"] for row in rows}
    return spread(times[over], times[under])


def _target(what: str, ratio: Spread, goal: float, ceiling: bool) -> dict[str, Any]:
    met = ratio.median <= goal if ceiling else ratio.median >= goal
    return {"what": what, **ratio._asdict(), "goal": goal, "ceiling": ceiling, "met": met}
