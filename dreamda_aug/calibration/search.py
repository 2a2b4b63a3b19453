"""How far images may go: measuring choices of the dials, and finding the furthest that holds."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product

import torch
from torch import Tensor

from dreamda_aug.calibration.judge import Judge
from dreamda_aug.generation.dials import CalibrationPoint
from dreamda_aug.generation.tensors import TensorSynthesizer
from dreamda_aug.method.inversion import Trajectory
from dreamda_aug.method.settings import Settings
from dreamda_aug.metrics.variation import measure_variation
from dreamda_aug.models import Condition

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
        """Whether no dial moves images less than the other's does; the same dials reach."""
        return (self.strength >= other.strength and self.replay <= other.replay
                and self.noise_scale >= other.noise_scale)

    def of(self, settings: Settings) -> Settings:
        """Settings with these dials."""
        return replace(settings, strength=self.strength, replay=self.replay,
                       noise_scale=self.noise_scale)


@dataclass(frozen=True)
class Target:
    """What images must keep; one of the two is a number.

    Attributes:
        min_agreement: share of replicas that keep their seed's class.
        max_distance: root mean square pixel distance from the seed image.
    """

    min_agreement: float | None = None
    max_distance: float | None = None

    def __str__(self) -> str:
        if self.max_distance is not None:
            return f"distance <= {self.max_distance:g}"
        return f"agreement >= {self.min_agreement:g}"

    def kept(self, point: CalibrationPoint) -> bool:
        """Whether a point keeps it."""
        if self.max_distance is not None:
            return point.distance <= self.max_distance
        assert self.min_agreement is not None
        return point.agreement >= self.min_agreement

    def furthest(self, points: Sequence[CalibrationPoint]) -> CalibrationPoint:
        """Of points that keep it, the one that moves images most; if none does, the closest."""
        good = [point for point in points if self.kept(point)]
        if not good:
            return self.closest(points)
        return max(good, key=lambda p: (p.distance, p.noise_scale))

    def closest(self, points: Sequence[CalibrationPoint]) -> CalibrationPoint:
        """Of points that all miss it, the one that misses it least."""
        if self.max_distance is not None:
            return min(points, key=lambda p: p.distance)
        return max(points, key=lambda p: p.agreement)


class Measurement:
    """Measures choices of the dials on one set of seed images.

    Args:
        core: makes the images.
        images: seed images, (N, C, H, W) in [0, 1], of the model's size.
        labels: their classes, (N,) int64; None: there are none.
        conditions: what generation is conditioned on, for each image; None: nothing.
        judge: says which class an image shows; without it, or without labels, agreement is not
            measured, and is 1.
        replicas: per image, at least 2.
    """

    def __init__(
        self, core: TensorSynthesizer, images: Tensor, labels: Tensor | None,
        conditions: Sequence[Condition] | None, judge: Judge | None, replicas: int,
    ):
        self.images, self.conditions, self.replicas = images.cpu(), conditions, replicas
        self.judge = None if labels is None else judge
        self._labels = None if labels is None else labels.cpu()
        self._rows = torch.arange(len(images))
        self._right = self._keeps(self.images, self._rows)
        # what is made to measure is not kept
        self.core = TensorSynthesizer(core.model, core.requested_settings,
                                      batch_size=core.batch_size, rng_seed=core.rng_seed)
        self.core.static_shapes = core.static_shapes
        self._inverted: dict[str, list[Trajectory]] = {}

    @property
    def right(self) -> int:
        """How many seed images the judge puts into their own class."""
        return len(self.images) if self._right is None else int(self._right.sum())

    def point(self, settings: Settings, images: int | None = None) -> CalibrationPoint:
        """What settings do, on the first ``images`` of them; None: on all."""
        return self.look(settings, images)[0]

    def look(
        self, settings: Settings, images: int | None = None
    ) -> tuple[CalibrationPoint, Tensor]:
        """The same, and what was made: replicas of one image after each other, (B, C, H, W)."""
        count = len(self.images) if images is None else min(images, len(self.images))
        core = self.core.with_settings(settings)
        conditions = None if self.conditions is None else self.conditions[:count]
        trajectories = self._invert(core, settings, count, conditions)
        made = core.generate(
            [t for t in trajectories for _ in range(self.replicas)],
            [c for c in conditions for _ in range(self.replicas)] if conditions else None,
        ).cpu()
        seeds = self.images[:count]
        variation = measure_variation(seeds, made, self.replicas, lambda batch: batch, None)
        agreement = 1.0
        rows = self._rows[:count].repeat_interleave(self.replicas)
        same = self._keeps(made, rows)
        if same is not None and self._right is not None:
            right = self._right[rows]
            agreement = same[right].double().mean().item() if right.any() else 0.0
        assert settings.noise_scale is not None and settings.replay is not None
        return CalibrationPoint(
            settings.noise_scale, settings.replay, agreement, variation.distance,
            variation.diversity, settings.strength, len(core.schedule), count,
            core.model.block_index), made

    def _keeps(self, images: Tensor, rows: Tensor) -> Tensor | None:
        """Which images show the class of their seed image, (B,) bool; None: nobody says."""
        if self.judge is None or self._labels is None:
            return None
        return self.judge.classify(images, rows) == self._labels[rows]

    def rows(self, settings: Settings, images: int | None = None) -> int:
        """U-Net rows that `point` takes, about; a second decoder pass counts as half a row."""
        count = len(self.images) if images is None else min(images, len(self.images))
        core = self.core.with_settings(settings)
        twice = settings.update_rule == "asymmetric" and settings.noise_scale
        steps = len(core.schedule)
        guided = core.model.guidable * settings.guided_steps(steps)
        inversion = steps if settings.replay else 0
        calls = 2 if settings.solver == "heun" else 1
        replica = (steps + guided) * (1.5 if twice else 1.0)
        return math.ceil(count * calls * (inversion + self.replicas * replica))

    def seconds_per_row(self) -> float:
        """Time that a U-Net row takes here: two short calls, the first of which warms up."""
        model = self.core.model
        condition = None if self.conditions is None else self.conditions[0]
        x_0 = model.encode(self.images[:1]).expand(min(8, self.core.batch_size), -1, -1, -1)
        schedule = model.schedule(COARSE_STEPS, 0.5, "uniform")
        embedded = model.embed([condition] * len(x_0))
        with torch.no_grad():
            for _ in range(2):
                started = time.perf_counter()
                # .sum().item(): an accelerator is done only when a value is wanted
                model.predict(x_0.contiguous(), schedule.timesteps[0], embedded).sum().item()
                seconds = time.perf_counter() - started
        return seconds / len(x_0)

    def _invert(
        self, core: TensorSynthesizer, settings: Settings, count: int,
        conditions: Sequence[Condition] | None,
    ) -> list[Trajectory]:
        # an inversion does not depend on these dials, unless nothing is recorded at all
        key = repr(replace(settings, noise_scale=0.0,
                           replay=1.0 if settings.replay else 0.0))
        known = self._inverted.get(key, [])
        if len(known) < count:
            rest = slice(len(known), count)
            known = known + core.invert(
                self.images[rest], conditions=None if conditions is None else conditions[rest])
            self._inverted = {key: known}  # the last ones only: each may weigh megabytes
        return known[:count]


def grid(
    strengths: Sequence[float], replays: Sequence[float], noise_scales: Sequence[float]
) -> list[Dials]:
    """Every choice, the mildest first."""
    return [Dials(float(s), float(a), float(n)) for s, a, n in product(
        sorted(set(strengths)), sorted(set(replays), reverse=True), sorted(set(noise_scales)))]


def search(
    measurement: Measurement, settings: Settings, choices: Sequence[Dials], target: Target,
    max_rows: int, progress: Callable[[CalibrationPoint, int], None],
) -> tuple[CalibrationPoint, list[CalibrationPoint]]:
    """The choice that moves images furthest and keeps the target, in few measurements.

    A stronger dial moves images further and keeps no more of them. So a choice that holds makes
    every milder one needless, and one that fails rules out every stronger one. The first look is
    coarse, at few steps and few images; what it finds is confirmed at the settings' own steps on
    all images, the furthest first.

    Args:
        measurement: on which images.
        settings: all that is not chosen here.
        choices: among them.
        target: what must be kept.
        max_rows: U-Net rows to spend, about; one choice is confirmed in any case.
        progress: called with each point, and the rows that it took.

    Returns:
        The chosen point, and all points.

    Source: ours.
    """
    points: list[CalibrationPoint] = []
    spent = 0

    def measure(of: Settings, images: int | None = None) -> CalibrationPoint:
        nonlocal spent
        rows = measurement.rows(of, images)
        spent += rows
        points.append(measurement.point(of, images))
        progress(points[-1], rows)
        return points[-1]

    left = list(choices)
    holding: dict[Dials, CalibrationPoint] = {}
    while left and spent < _COARSE_SHARE * max_rows:
        dials = _most_telling(left)
        point = measure(coarse(dials.of(settings)), COARSE_IMAGES)
        left.remove(dials)
        if target.kept(point):
            holding[dials] = point
            left = [each for each in left if not dials.reaches(each)]
        else:
            left = [each for each in left if not each.reaches(dials)]
    # by the distance that is expected; the mildest choice comes last
    expected = {choices[0]: 0.0} | {dials: point.distance for dials, point in holding.items()}
    confirmed: dict[Dials, CalibrationPoint] = {}
    while expected and not (confirmed and spent >= max_rows):
        dials = max(expected, key=lambda each: expected[each])
        distance = expected.pop(dials)
        if any(dials.reaches(each) for each in confirmed):
            continue
        confirmed[dials] = measure(dials.of(settings))
        if target.kept(confirmed[dials]):
            return confirmed[dials], points
        for milder in _one_milder(dials, choices):
            expected.setdefault(milder, _MILDER * distance)
    return target.closest(list(confirmed.values())), points


def coarse(settings: Settings) -> Settings:
    """The same with few steps, which begin at the same noise level."""
    assert settings.strength is not None
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
