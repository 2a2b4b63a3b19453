"""How far images may go: measuring choices of the dials, and finding the furthest that holds."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from dreamda_aug import progress as bars
from dreamda_aug.calibration.judge import Judge
from dreamda_aug.generation.dials import Calibration, CalibrationPoint
from dreamda_aug.generation.price import denoiser_rows
from dreamda_aug.generation.sampler import Sampler, in_turn
from dreamda_aug.method.inversion import Trajectory
from dreamda_aug.method.settings import ResolvedSettings, Settings
from dreamda_aug.metrics.distances import measure_variation
from dreamda_aug.models.conditioning import Condition

# The first, coarse look at a choice: so many steps, on so many of the images.
COARSE_STEPS, COARSE_IMAGES = 6, 16
# The share of the rows that it may take; the rest confirms what it found.
_COARSE_SHARE = 0.5
# What is expected of a choice that is one step milder: this share of the distance.
_MILDER = 0.9


@dataclass(frozen=True)
class Dials:
    """A choice to be measured; see `Settings`."""

    strength: float
    replay: float
    noise_scale: float

    def reaches(self, other: "Dials") -> bool:
        """True if every dial is at least as strong as in ``other``."""
        return (self.strength >= other.strength and self.replay <= other.replay
                and self.noise_scale >= other.noise_scale)

    def of(self, settings: Settings) -> ResolvedSettings:
        """Settings with these dials."""
        return settings.with_dials(**vars(self))


class Grid(NamedTuple):
    """Values of the dials to choose from.

    Attributes:
        strengths: in (0, 1].
        replays: in [0, 1].
        noise_scales: >= 0.
    """

    strengths: Sequence[float]
    replays: Sequence[float]
    noise_scales: Sequence[float]

    def choices(self, settings: Settings | None = None) -> list[Dials]:
        """Every choice, the mildest first; dials that are numbers in the settings keep them."""
        given = ("strength", "replay", "noise_scale")
        own = [None if settings is None else getattr(settings, name) for name in given]
        values = [sorted(set(map(float, several))) if number is None else [number]
                  for several, number in zip(self, own, strict=True)]
        return [Dials(*each) for each in product(values[0], reversed(values[1]), values[2])]


@dataclass(frozen=True)
class Target:
    """What images must keep.

    Attributes:
        min_agreement: share of replicas that keep their seed's class.
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
        good = [point for point in points if self.kept(point)]
        if good:
            return max(good, key=lambda p: (p.distance, p.noise_scale))
        if self.max_distance is not None:
            return min(points, key=lambda p: p.distance)
        return max(points, key=lambda p: p.agreement)


class Measurement:
    """Measures choices of the dials on one set of seed images.

    Args:
        sampler: makes the images, with the settings that are measured in place of its own, and
            without a cache.
        images: seed images, (N, C, H, W) in [0, 1], of the model's size.
        labels: their classes, (N,) int64, or None where there are none.
        conditions: what generation is conditioned on, for each image, or None for nothing.
        judge: tells the class of an image; without it, or without labels, agreement is not
            measured, and is 1.
        expansion_ratio: replicas per image, at least 2.
    """

    def __init__(
        self, sampler: Sampler, images: Tensor, labels: Tensor | None,
        conditions: Sequence[Condition] | None, judge: Judge | None, expansion_ratio: int,
    ):
        self.sampler = replace(sampler, cache=None)
        self.images, self.conditions = images.cpu(), conditions
        self.expansion_ratio = expansion_ratio
        self.judge = None if labels is None else judge
        self._labels = None if labels is None else labels.cpu()
        self._rows = torch.arange(len(images))
        self._right = self._keeps(self.images, self._rows)
        self._inverted: dict[str, list[Trajectory]] = {}

    @property
    def right(self) -> int:
        """How many seed images the judge puts into their own class."""
        return len(self.images) if self._right is None else int(self._right.sum())

    def point(self, settings: ResolvedSettings, images: int | None = None) -> CalibrationPoint:
        """What settings do, on the first ``images`` of them, or on all."""
        return self.look(settings, images)[0]

    def look(
        self, settings: ResolvedSettings, images: int | None = None
    ) -> tuple[CalibrationPoint, Tensor]:
        """The same, and what was made: replicas of one image after each other, (B, C, H, W)."""
        count, ratio = self._count(images), self.expansion_ratio
        sampler = replace(self.sampler, settings=settings)
        trajectories = self._invert(sampler, count)
        made = sampler.generate(
            [t for t in trajectories for _ in range(ratio)],
            [c for c in self.conditions[:count] for _ in range(ratio)] if self.conditions else None,
        ).cpu()
        variation = measure_variation(
            self.images[:count], made, ratio, lambda batch: batch, None)
        agreement, judged = 1.0, None
        rows = self._rows[:count].repeat_interleave(ratio)
        same = self._keeps(made, rows)
        if same is not None and self._right is not None:
            right = self._right[rows]
            agreement = same[right].double().mean().item() if right.any() else 0.0
            judged = int(self._right[:count].sum())
        return CalibrationPoint(
            settings.strength, settings.noise_scale, settings.replay, agreement,
            variation.distance, variation.diversity, len(sampler.schedule), count,
            sampler.model.block_index, judged), made

    def rows(self, settings: ResolvedSettings, images: int | None = None) -> int:
        """U-Net rows that `point` takes, its inversions included; see `denoiser_rows`."""
        count, sampler = self._count(images), replace(self.sampler, settings=settings)
        return denoiser_rows(
            sampler, inversions=count, samples=count * self.expansion_ratio).whole

    def seconds_per_row(self) -> float:
        """Time that a U-Net row takes here: two short calls, the first of which warms up."""
        model = self.sampler.model
        condition = None if self.conditions is None else self.conditions[0]
        x_0 = model.encode(self.images[:1]).expand(min(8, self.sampler.batch_size), -1, -1, -1)
        schedule = model.schedule(COARSE_STEPS, 0.5, "uniform")
        embedded = model.embed([condition] * len(x_0))
        with in_turn(model), torch.no_grad():
            for _ in range(2):
                started = time.perf_counter()
                # .sum().item(): an accelerator is done only when a value is wanted
                model.predict(x_0.contiguous(), schedule.timesteps[0], embedded).sum().item()
                seconds = time.perf_counter() - started
        return seconds / len(x_0)

    def _count(self, images: int | None) -> int:
        return len(self.images) if images is None else min(images, len(self.images))

    def _keeps(self, images: Tensor, rows: Tensor) -> Tensor | None:
        """Which images show the class of their seed image, (B,) bool, or None if not judged."""
        if self.judge is None or self._labels is None:
            return None
        return self.judge.classify(images, rows) == self._labels[rows]

    def _invert(self, sampler: Sampler, count: int) -> list[Trajectory]:
        # an inversion does not depend on these dials, unless nothing is recorded at all
        key = repr(replace(sampler.settings, noise_scale=0.0,
                           replay=1.0 if sampler.settings.replay else 0.0))
        known = self._inverted.get(key, [])
        if len(known) < count:
            rest = slice(len(known), count)
            known = known + sampler.invert(
                self.images[rest], conditions=self.conditions and self.conditions[rest])
            self._inverted = {key: known}  # the last ones only: each may weigh megabytes
        return known[:count]


def choose(
    measurement: Measurement, settings: Settings, choices: Sequence[Dials], target: Target,
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
        settings: all that is not chosen here.
        choices: among them, the mildest first.
        target: what must be kept.
        max_rows: U-Net rows to spend, about; one choice is confirmed in any case. None measures
            every choice at the settings' own steps on all images.
        progress: called with each point as it is measured.
        sample: as in `Calibration`.

    Source: ours.
    """
    points: list[CalibrationPoint] = []
    spent = 0
    total = max_rows or sum(measurement.rows(each.of(settings)) for each in choices)
    with bars.bar("calibrating", total, "rows") as shown:
        def measure(of: ResolvedSettings, images: int | None = None) -> CalibrationPoint:
            nonlocal spent
            rows = measurement.rows(of, images)
            points.append(measurement.point(of, images))
            shown.update(min(rows, total - min(total, spent)))
            spent += rows
            if progress:
                progress(points[-1])
            return points[-1]

        if max_rows is None:
            chosen = target.furthest([measure(each.of(settings)) for each in choices])
        else:
            left, holding = list(choices), {choices[0]: 0.0}
            while left and spent < _COARSE_SHARE * max_rows:
                dials = _most_telling(left)
                point = measure(coarse(dials.of(settings)), COARSE_IMAGES)
                kept = target.kept(point)
                if kept:
                    holding[dials] = point.distance
                left = [each for each in left if each != dials and not (
                    dials.reaches(each) if kept else each.reaches(dials))]
            confirmed: dict[Dials, CalibrationPoint] = {}
            while holding and not (confirmed and spent >= max_rows):
                dials = max(holding, key=lambda each: holding[each])
                distance = holding.pop(dials)
                if any(dials.reaches(each) for each in confirmed):
                    continue
                confirmed[dials] = measure(dials.of(settings))
                if target.kept(confirmed[dials]):
                    break
                for milder in _one_milder(dials, choices):
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


def _one_milder(dials: Dials, choices: Sequence[Dials]) -> list[Dials]:
    """The choices that differ in one dial, by one step, and are milder."""
    below = [each for each in choices if each != dials and dials.reaches(each)
             and sum(getattr(each, f.name) != getattr(dials, f.name) for f in fields(Dials)) == 1]
    return [each for each in below if not any(
        other != each and other.reaches(each) for other in below)]


def _most_telling(choices: Sequence[Dials]) -> Dials:
    """The choice that settles most others, whether it holds or not."""
    def settled(dials: Dials) -> int:
        milder = sum(dials.reaches(each) for each in choices)
        stronger = sum(each.reaches(dials) for each in choices)
        return min(milder, stronger)

    return max(choices, key=settled)
