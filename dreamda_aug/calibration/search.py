"""`calibrate`: how far a model may move images, measured on the user's own images."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from dreamda_aug.arguments import checked, real, whole
from dreamda_aug.calibration.judge import Judge, fold_judge, given_judge
from dreamda_aug.generation.dials import (
    LABEL_FREE,
    Calibration,
    CalibrationPoint,
    calibration_path,
    keep_calibration,
)
from dreamda_aug.generation.sampler import Request, Sampler
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.method.inversion import Trajectory
from dreamda_aug.method.settings import DIALS, ResolvedSettings, Settings
from dreamda_aug.metrics.distances import distance_and_diversity
from dreamda_aug.models import DiffusionModel
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
        return self._margin(point) >= 0

    def furthest(self, points: Sequence[CalibrationPoint]) -> CalibrationPoint:
        """Of points that keep it, the one that moves images most; if none does, the closest."""
        if good := [point for point in points if self.kept(point)]:
            return max(good, key=lambda p: (p.distance, p.noise_scale))
        return max(points, key=self._margin)

    def _margin(self, point: CalibrationPoint) -> float:
        if self.max_distance is not None:
            return self.max_distance - point.distance
        return point.agreement - self.min_agreement


class Measurement:
    """Measures choices of the dials on one set of seed images.

    Args:
        sampler: makes the images, with the settings that are measured in place of its own, and
            without a cache.
        images: seed images, (N, C, H, W) in [0, 1], of the model's size.
        conditions: what generation is conditioned on, for each image, or None for nothing.
        judge: tells which images keep their class, or None: then agreement is not measured, and 1.
        expansion_ratio: replicas per image, at least 2.

    Attributes:
        right: how many seed images the judge puts into their own class.
    """

    def __init__(
        self, sampler: Sampler, images: Tensor, conditions: Sequence[Condition] | None,
        judge: Judge | None, expansion_ratio: int,
    ):
        self.sampler, self.images = replace(sampler, cache=None), images.cpu()
        self.judge, self.expansion_ratio = judge, expansion_ratio
        self.conditions = list(conditions or [None] * len(images))
        self._keeps = judge.keeps if judge else lambda made, rows: torch.ones(
            len(made), dtype=torch.bool)
        self._right = self._keeps(self.images, torch.arange(len(images)))
        self.right = int(self._right.sum())
        self._inverted: dict[str, list[Trajectory]] = {}

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


def choose(
    measurement: Measurement, choices: Sequence[ResolvedSettings], target: Target,
    max_rows: int | None, progress: Callable[[CalibrationPoint], None] | None = None,
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
            # whether every dial of one choice is at least as strong as in another
            reaches = [[one.strength >= other.strength and one.replay <= other.replay
                        and one.noise_scale >= other.noise_scale for other in choices]
                       for one in choices]
            left, holding = list(range(len(choices))), {0: 0.0}
            while left and spent < _COARSE_SHARE * max_rows:
                # the one that settles most others, whether it holds or not
                telling = max(left, key=lambda one: min(
                    sum(reaches[one][each] for each in left),
                    sum(reaches[each][one] for each in left)))
                point = measure(_coarse(choices[telling]), COARSE_IMAGES)
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
                       target.kept(chosen), points, judge.name if judge else "",
                       block_index=chosen.block_index)


def _coarse(settings: ResolvedSettings) -> ResolvedSettings:
    """The same with few steps, which begin at the same noise level."""
    steps = min(settings.steps, math.ceil(COARSE_STEPS / settings.strength))
    return settings if steps == settings.steps else replace(
        settings, steps=steps, timestep_spacing="uniform")


def _one_milder(
    one: int, choices: Sequence[ResolvedSettings], reaches: Sequence[Sequence[bool]]
) -> list[int]:
    """The choices that differ in one dial, by one step, and are milder."""
    below = [each for each, other in enumerate(choices) if reaches[one][each] and sum(
        getattr(other, name) != getattr(choices[one], name) for name in DIALS) == 1]
    return [each for each in below
            if not any(reaches[other][each] for other in below if other != each)]


@checked
def calibrate(
    images: Tensor,
    labels: Tensor | None = None,
    *,
    synthesizer: Synthesizer | HasSynthesizer,
    conditions: Sequence[Condition] | None = None,
    classifier: Callable[[Tensor], Tensor] | None = None,
    min_agreement: float = 0.9,
    max_distance: float | None = None,
    strengths: Sequence[float] = (0.3, 0.5, 0.7, 0.85, 1.0),
    noise_scales: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0),
    replays: Sequence[float] = (1.0, 0.95, 0.9, 0.8, 0.6, 0.0),
    block_indices: Sequence[int] = (),
    expansion_ratio: int = 4,
    max_rows: int | None = None,
    progress: Callable[[CalibrationPoint], None] | None = None,
) -> Calibration:
    """Choose the dials that move images furthest and keep their classes.

    Args:
        images: a sample of the seed images, (N, C, H, W) in [0, 1], of the model's size; a few
            per class, 50 or more in all.
        labels: their classes, (N,) int64; needed unless ``max_distance`` is the target.
        synthesizer: what to calibrate; settings that are numbers are not changed.
        conditions: what generation is conditioned on for each image, or None to calibrate for
            images without labels.
        classifier: images (B, C, H, W) in [0, 1] to logits (B, K) or classes (B,), or None for
            linear probes on the model's own features, each fitted without the images that it
            judges.
        min_agreement: the target: at least this share of replicas keeps the seed's label, in
            [0, 1], counted over seeds that the classifier gets right.
        max_distance: another target: root mean square pixel distance from the seed, in [0, 1].
        strengths: what to try, in (0, 1]; only where the setting is None.
        noise_scales: what to try, >= 0; only where the setting is None.
        replays: what to try, in [0, 1]; only where the setting is None.
        block_indices: for transformers, blocks behind which noise may enter: all other dials are
            measured behind each with the same judge, and the block that moves images furthest is
            kept; or none for the block of the synthesizer.
        expansion_ratio: replicas per image, at least 2.
        max_rows: approximate number of U-Net rows to spend, all blocks together: some choices are
            measured coarsely, and the best ones fully; or None to measure every choice fully.
        progress: called with each point as it is measured.

    Returns:
        The calibration. It is also stored beside the synthesizer's cache, and used from there.
        With ``block_indices`` one is stored per block, and the best is returned. The synthesizer
        keeps its block: load the model with ``block_index=calibration.block_index``.

    Raises:
        ValueError: an argument breaks its rule.

    Source: ours.
    """
    if labels is None and max_distance is None:
        raise ValueError("labels must be given for the agreement target, or max_distance instead.")
    target = Target(real("min_agreement", min_agreement, "lie in [0, 1]", 0, 1), max_distance)
    expansion_ratio = whole("expansion_ratio", expansion_ratio, 2)  # diversity needs two
    if max_rows is not None:
        max_rows = whole("max_rows", max_rows, 1)
    synthesizer = as_synthesizer(synthesizer)
    requested, model = synthesizer.requested_settings, synthesizer.model
    choices = dial_choices(requested, strengths, replays, noise_scales)
    with ExitStack() as hooks:
        models, judge = _hooked_at(model, block_indices, hooks), None
        if labels is not None:
            judge = (given_judge(classifier, labels.cpu()) if classifier else
                     fold_judge(model, images.cpu(), labels.cpu()))
            if judge is None and max_distance is None:
                raise ValueError("labels must be of two classes or more for the agreement target, "
                                 "got one class; give max_distance instead, or a classifier.")
        share = None if max_rows is None else max(1, max_rows // len(models))
        sampler = synthesizer.with_settings(choices[0]).sampler
        found = [choose(Measurement(replace(sampler, model=each), images, conditions, judge,
                                    expansion_ratio), choices, target, share, progress)
                 for each in models]
        chosen = [each.chosen for each in found]
        best = chosen.index(target.furthest(chosen))
        found[best] = replace(found[best], points=[p for each in found for p in each.points])
        if synthesizer.cache is not None:
            label_free = conditions is None and synthesizer.conditioner.needs_label(model)
            for one, each in zip(models, found, strict=True):
                keep_calibration(each, calibration_path(
                    synthesizer.cache.root, requested, one, LABEL_FREE if label_free else ""))
    return found[best]


def _hooked_at(
    model: DiffusionModel, block_indices: Sequence[int], hooks: ExitStack
) -> list[DiffusionModel]:
    """The same model perturbed behind each of these blocks, until ``hooks`` close; or as it is."""
    from dreamda_aug.models.transformer import TransformerModel

    if not block_indices:
        return [model]
    if not isinstance(model, TransformerModel):
        raise ValueError(f"block_indices are for transformers, and {model.name} has a U-Net, got "
                         f"{list(block_indices)}; leave them out.")
    others: list[DiffusionModel] = []
    for index in dict.fromkeys(block_indices):
        others.append(model.with_block(index))
        hooks.callback(others[-1].hook.remove)
    return others
