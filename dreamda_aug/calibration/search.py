"""How far images may go: measuring choices of the dials, and finding the furthest that holds."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from dreamda_aug.calibration.judge import Judge
from dreamda_aug.generation.dials import Calibration, CalibrationPoint
from dreamda_aug.generation.sampler import Request, Sampler
from dreamda_aug.method.inversion import Trajectory
from dreamda_aug.method.settings import DIALS, ResolvedSettings, Settings
from dreamda_aug.metrics.distances import distance_and_diversity
from dreamda_aug.models.conditioning import Condition
from dreamda_aug.progress import bar

# The first, coarse look at a choice: so many steps, on so many of the images.
COARSE_STEPS, COARSE_IMAGES = 6, 16
# The share of the rows that it may take; the rest confirms what it found.
_COARSE_SHARE = 0.5
# What is expected of a choice that is one step milder: this share of the distance.
_MILDER = 0.9


def dial_choices(
    settings: Settings, strengths: Sequence[float], replays: Sequence[float],
    noise_scales: Sequence[float],
) -> list[ResolvedSettings]:
    """The settings with every combination of values for the dials that are None, mildest first."""
    values = {"strength": sorted(set(strengths)), "replay": sorted(set(replays), reverse=True),
              "noise_scale": sorted(set(noise_scales))}
    open_dials = {name: several for name, several in values.items() if name in settings.open_dials}
    return [settings.with_dials(**dict(zip(open_dials, each, strict=True)))
            for each in product(*open_dials.values())]


@dataclass(frozen=True)
class Target:
    """What images must keep.

    Attributes:
        min_agreement: share of replicas that keep their seed's class. The measured share counts,
            and not the lower end of its interval, which is 0.86 even where all replicas of 24
            images keep their class: nothing would ever be chosen.
        max_distance: root mean square pixel distance from the seed image, which counts instead of
            the agreement unless it is None.
    """

    min_agreement: float = 0.9
    max_distance: float | None = None

    def __str__(self) -> str:
        if self.max_distance is not None:
            return f"distance <= {self.max_distance:g}"
        return f"agreement >= {self.min_agreement:g}"

    def kept(self, point: CalibrationPoint) -> bool:
        """Whether a point keeps it."""
        if self.max_distance is not None:
            return point.distance <= self.max_distance
        return point.agreement >= self.min_agreement

    def furthest(self, points: Sequence[CalibrationPoint]) -> CalibrationPoint:
        """Of points that keep it, the one that moves images most; if none does, the closest."""
        if good := [point for point in points if self.kept(point)]:
            return max(good, key=lambda p: (p.distance, p.noise_scale))
        return max(points, key=lambda p: p.agreement if self.max_distance is None else -p.distance)


class Measurement:
    """Measures choices of the dials on one set of seed images.

    Args:
        sampler: makes the images, with the settings that are measured in place of its own, and
            without a cache.
        images: seed images, (N, C, H, W) in [0, 1], of the model's size.
        conditions: what generation is conditioned on, for each image, or None for nothing.
        judge: tells which images keep their class, or None: then agreement is not measured, and 1.
        expansion_ratio: replicas per image, at least 2.
    """

    def __init__(
        self, sampler: Sampler, images: Tensor, conditions: Sequence[Condition] | None,
        judge: Judge | None, expansion_ratio: int,
    ):
        self.sampler = replace(sampler, cache=None)
        self.images, self.expansion_ratio = images.cpu(), expansion_ratio
        self.conditions = list(conditions or [None] * len(images))
        self.judge = judge
        self._keeps = judge.keeps if judge else _keeps_all
        self._right = self._keeps(self.images, torch.arange(len(images)))
        self._inverted: dict[str, list[Trajectory]] = {}

    @property
    def right(self) -> int:
        """How many seed images the judge puts into their own class."""
        return int(self._right.sum())

    def look(
        self, settings: ResolvedSettings, images: int | None = None
    ) -> tuple[CalibrationPoint, Tensor]:
        """What settings do, on the first ``images`` of them or on all; and what was made.

        Replicas of one image come after each other, (B, C, H, W).
        """
        sampler, count = replace(self.sampler, settings=settings), len(self.images[:images])
        # an inversion does not depend on these dials, unless nothing is recorded at all
        key = repr((count, replace(settings, noise_scale=0.0,
                                   replay=1.0 if settings.replay else 0.0)))
        if key not in self._inverted:  # the last ones alone are kept: each may weigh megabytes
            self._inverted = {key: sampler.invert(self.images[:count], self.conditions[:count])}
        trajectories = self._inverted[key]
        rows = torch.arange(count).repeat_interleave(self.expansion_ratio)
        made = sampler.generate([trajectories[row] for row in rows],
                                [self.conditions[row] for row in rows]).cpu()
        right, agreement = self._right[rows], 0.0
        if right.any():
            agreement = self._keeps(made, rows)[right].double().mean().item()
        distance, diversity = distance_and_diversity(self.images[:count], made)
        return CalibrationPoint(
            settings.strength, settings.noise_scale, settings.replay, agreement, distance,
            diversity, len(sampler.schedule), count, sampler.model.block_index,
            int(self._right[:count].sum()) if self.judge else None), made

    def rows(self, settings: ResolvedSettings, images: int | None = None) -> int:
        """U-Net rows that `look` takes, its inversions included; see `Sampler.rows`."""
        count = len(self.images[:images])
        return replace(self.sampler, settings=settings).rows(
            inversions=count, samples=count * self.expansion_ratio)

    def seconds_per_row(self) -> float:
        """Time that a U-Net row takes here: two short runs, the first of which warms up."""
        settings = self.sampler.settings
        sampler = replace(self.sampler, settings=replace(
            settings, steps=math.ceil(2 / settings.strength), timestep_spacing="uniform"))
        requests = [Request(0, self.conditions[0], replica) for replica in range(8)]
        for _ in range(2):
            started = time.perf_counter()
            sampler.synthesize(self.images[:1], requests)
        seconds = time.perf_counter() - started
        return seconds / sampler.rows(inversions=1, samples=len(requests))


def _keeps_all(images: Tensor, rows: Tensor) -> Tensor:
    return torch.ones(len(images), dtype=torch.bool)


def choose(
    measurement: Measurement, choices: Sequence[ResolvedSettings], target: Target,
    max_rows: int | None, progress: Callable[[CalibrationPoint], None] | None = None,
    sample: str = "",
) -> Calibration:
    """Measure choices and take the one that moves images furthest and keeps the target.

    A stronger dial moves images further and keeps no more of them. So a choice that holds makes
    every milder one needless, and one that fails rules out every stronger one. The first look is
    coarse, at few steps and few images; what it finds is confirmed at the settings' own steps on
    all images, the furthest first.

    Args:
        measurement: on which images.
        choices: settings that differ in their dials, the mildest first.
        target: what must be kept.
        max_rows: U-Net rows to spend, about; one choice is confirmed in any case. None measures
            every choice at the settings' own steps on all images.
        progress: called with each point as it is measured.
        sample: as in `Calibration`.

    Source: ours.
    """
    points: list[CalibrationPoint] = []
    spent = 0
    total = max_rows or sum(map(measurement.rows, choices))
    with bar("calibrating", total, "rows") as shown:
        def measure(settings: ResolvedSettings, images: int | None = None) -> CalibrationPoint:
            nonlocal spent
            points.append(measurement.look(settings, images)[0])
            rows = measurement.rows(settings, images)
            spent += rows
            shown.update(rows)
            if progress:
                progress(points[-1])
            return points[-1]

        if max_rows is None:
            chosen = target.furthest(list(map(measure, choices)))
        else:
            reaches = [[_reaches(one, other) for other in choices] for one in choices]
            left, holding = list(range(len(choices))), {0: 0.0}
            while left and spent < _COARSE_SHARE * max_rows:
                # the one that settles most others, whether it holds or not
                telling = max(left, key=lambda one: min(
                    sum(reaches[one][each] for each in left),
                    sum(reaches[each][one] for each in left)))
                point = measure(coarse(choices[telling]), COARSE_IMAGES)
                kept = target.kept(point)
                if kept:
                    holding[telling] = point.distance
                left = [each for each in left if each != telling and not (
                    reaches[telling][each] if kept else reaches[each][telling])]
            confirmed: dict[int, CalibrationPoint] = {}
            while holding and not (confirmed and spent >= max_rows):
                furthest = max(holding, key=lambda one: holding[one])
                distance = holding.pop(furthest)
                if any(reaches[furthest][each] for each in confirmed):
                    continue
                confirmed[furthest] = measure(choices[furthest])
                if target.kept(confirmed[furthest]):
                    break
                for milder in _one_milder(furthest, choices, reaches):
                    holding.setdefault(milder, _MILDER * distance)
            chosen = target.furthest(list(confirmed.values()))
    if not target.kept(chosen):
        warnings.warn(f"no setting kept {target}; took the closest, {chosen}.", stacklevel=4)
    judge = measurement.judge if target.max_distance is None else None
    return Calibration(chosen.strength, chosen.noise_scale, chosen.replay, str(target),
                       target.kept(chosen), points, judge.name if judge else "", sample,
                       chosen.block_index)


def coarse(settings: ResolvedSettings) -> ResolvedSettings:
    """The same with few steps, which begin at the same noise level."""
    steps = min(settings.steps, math.ceil(COARSE_STEPS / settings.strength))
    return settings if steps == settings.steps else replace(
        settings, steps=steps, timestep_spacing="uniform")


def _reaches(one: ResolvedSettings, other: ResolvedSettings) -> bool:
    """True if every dial is at least as strong as in ``other``."""
    return (one.strength >= other.strength and one.replay <= other.replay
            and one.noise_scale >= other.noise_scale)


def _one_milder(
    one: int, choices: Sequence[ResolvedSettings], reaches: Sequence[Sequence[bool]]
) -> list[int]:
    """The choices that differ in one dial, by one step, and are milder."""
    below = [each for each, other in enumerate(choices) if reaches[one][each] and sum(
        getattr(other, name) != getattr(choices[one], name) for name in DIALS) == 1]
    return [each for each in below
            if not any(reaches[other][each] for other in below if other != each)]
