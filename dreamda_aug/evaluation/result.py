"""Results of an evaluation: arms, accuracies, ranking and recommendation."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dreamda_aug.errors import StorageError
from dreamda_aug.files import read_json, write_atomically
from dreamda_aug.statistics import interval, standard_error

REAL, CLASSICAL = "real only", "RandAugment"
# Number of rungs that the draws are divided into; poor arms stop after each.
RUNGS = 3
# Arms with synthetic images that are trained on the last rung.
FINALISTS = 2
# What less than this would gain is not worth making images for.
ONE_POINT = 0.01


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: as tables show it.
        preset: what its synthetic images are made with; "" without any.
        expansion_ratio: synthetic images per labeled one.
        labels: who labels them: ``"seed"``, ``"AMST"`` or ``"AMST+"``.
        price: U-Net rows per labeled image.
    """

    name: str
    preset: str = ""
    expansion_ratio: int = 0
    labels: str = "seed"
    price: float = 0.0


@dataclass(frozen=True)
class Run:
    """One arm, trained and tested once.

    Attributes:
        arm: its name.
        draw: number of the draw, from 0.
        accuracy: on the held-out images, averaged over classes, in [0, 1].
        seconds: time of training, of testing and, for AMST+, of estimating the label prior.
        labels_kept: share of AMST's labels that are the seed image's; None without AMST.
    """

    arm: str
    draw: int
    accuracy: float
    seconds: float
    labels_kept: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; arms are paired by draw.

    Attributes:
        settings: the arguments and the model.
        arms: the ways to train, synthetic images with seed labels last.
        plus: whether the model is conditioned on the class, so that AMST+ is tried.
        runs: trainings that are done.
        seconds: time of each kind of work.
        command: how to make the images of an arm, with ``{preset}`` and ``{expansion_ratio}``.
    """

    settings: dict[str, Any]
    arms: list[Arm]
    plus: bool = False
    runs: list[Run] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    command: str = ""

    @property
    def draws(self) -> int:
        """How often labeled images are drawn."""
        return int(self.settings["draws"])

    def rung(self, draw: int) -> int:
        """The rung that a draw belongs to."""
        return RUNGS * draw // self.draws

    def accuracies(self, arm: Arm) -> dict[int, float]:
        """Accuracy of an arm in each of its draws."""
        return {run.draw: run.accuracy for run in self.runs if run.arm == arm.name}

    def gains(self, arm: Arm, over: Arm) -> list[float]:
        """An arm's gain over another one in each draw that both have."""
        mine, base = self.accuracies(arm), self.accuracies(over)
        return [value - base[draw] for draw, value in mine.items() if draw in base]

    def gain(self, arm: Arm, over: Arm | None = None) -> tuple[float, float]:
        """Mean gain over another arm (or the best classical one), and half its 95 % interval."""
        return interval(self.gains(arm, over or self.best_classical))

    def contenders(self, rung: int) -> list[Arm]:
        """Arms of a rung, which the rungs before it decide: successive halving.

        All arms with seed labels begin. The better classical arm and the better half of the others
        stay for the second rung, where the best of these meets AMST; the best two for the last.

        Source: Jamieson and Talwalkar 2016, arXiv:1502.07943, with draws as what is spent.
        """
        if rung == 0:
            return self.arms
        first, earlier = (
            replace(self, runs=[run for run in self.runs if self.rung(run.draw) < end])
            for end in (1, rung))
        kept = first.best_first([arm for arm in self.arms if arm.preset])
        kept = [*kept[: math.ceil(len(kept) / 2)],
                *(replace(kept[0], name=f"{kept[0].name}, {labels}", labels=labels)
                  for labels in ("AMST", "AMST+")[: 1 + self.plus])]
        if rung > 1:
            kept = earlier.best_first(kept)[:FINALISTS]
        return [first.best_classical, *kept]

    def best_first(self, arms: list[Arm]) -> list[Arm]:
        """Arms in the order of their mean gain over the best classical one."""
        base = self.best_classical
        return sorted(arms, key=lambda arm: -standard_error(self.gains(arm, base))[0])

    @property
    def best_classical(self) -> Arm:
        """The better of real images only and RandAugment, over the draws that both have."""
        plain = [arm for arm in self.arms if not arm.preset]
        common = set.intersection(*(set(self.accuracies(arm)) for arm in plain))
        return max(plain, key=lambda arm: sum(self.accuracies(arm)[draw] for draw in common))

    @property
    def ranking(self) -> list[Arm]:
        """All trained arms, best first; those that stopped earlier come last."""
        reached = self.contenders(RUNGS - 1)
        middle = [arm for arm in self.contenders(1) if arm not in reached]
        rest = [arm for arm in self.arms if arm not in [*reached, *middle]]
        return [arm for arms in (reached, middle, rest) for arm in self.best_first(arms)]

    @property
    def recommended(self) -> Arm:
        """The cheapest arm of the last rung within noise of the best.

        Within noise: its mean lies at most one standard error of the paired difference below the
        best one's, and at most one point.

        Source: Breiman et al. 1984, Classification and Regression Trees, section 3.4.3 (1-SE rule).
        """
        best, *others = self.best_first(self.contenders(RUNGS - 1))
        behind = {arm.name: standard_error(self.gains(best, arm)) for arm in others}
        close = [arm for arm in others
                 if behind[arm.name][0] <= min(behind[arm.name][1], ONE_POINT)]
        labels = ["seed", "AMST", "AMST+"]  # from cheap to dear
        return min([best, *close], key=lambda arm: (arm.price, labels.index(arm.labels)))

    @property
    def verdict(self) -> str:
        """``"helps"``, ``"does not help"`` or ``"undecided"``: about the best synthetic images.

        Helps: the whole 95 % interval of the gain over the best classical arm lies above 0. Does
        not help: it does not, and its upper end lies below one point. Undecided: anything else.
        """
        best = next(arm for arm in self.ranking if arm.preset)
        mean, half = self.gain(best)
        if mean - half > 0:
            return "helps"
        return "does not help" if mean + half < ONE_POINT else "undecided"

    def __str__(self) -> str:
        """The ranking, the recommendation, the verdict and what each part cost."""
        classical, chosen, ranking = self.best_classical, self.recommended, self.ranking
        best = next(arm for arm in ranking if arm.preset)
        width = max(len(arm.name) for arm in ranking)
        lines = [f"{'arm':<{width}}  draws  accuracy, %   gain over {classical.name}, points"]
        for arm in ranking:
            values = list(self.accuracies(arm).values())
            gain = "" if arm == classical else _plus_minus("{:+.1f}", self.gain(arm))
            lines.append(f"{arm.name:<{width}}  {len(values):5}  "
                         f"{_plus_minus('{:5.1f}', interval(values)):<12}  {gain}")
        why = "the best" if chosen == ranking[0] else (
            f"within noise of the best, {ranking[0].name}, and cheaper")
        spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        return "\n".join([
            *lines, f"recommended: {chosen.name} ({why})",
            f"generated images: {self.verdict} ({best.name} minus {classical.name}: "
            f"{_plus_minus('{:+.1f}', self.gain(best))} points, 95 % interval)",
            f"to do: {self.instruction}", f"time: {spent}"])

    @property
    def instruction(self) -> str:
        """The command that makes the images of the recommendation, or the advice to make none."""
        arm = self.recommended
        if not arm.preset:
            return f"train with {arm.name}; make no images"
        then = "" if arm.labels == "seed" else f"   and train with {arm.labels} (docs/amst.md)"
        return self.command.format(preset=arm.preset, expansion_ratio=arm.expansion_ratio) + then

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, as a whole or not at all."""
        found = asdict(self)
        if {run.draw for run in self.runs} == set(range(self.draws)):
            found |= {"ranking": [arm.name for arm in self.ranking], "verdict": self.verdict,
                      "recommended": self.recommended.name, "instruction": self.instruction}
        write_atomically(Path(path), (json.dumps(found, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            StorageError: the file holds something else.
        """
        found = read_json(path)
        try:
            return cls(found["settings"], [Arm(**arm) for arm in found["arms"]], found["plus"],
                       [Run(**run) for run in found["runs"]], found["seconds"], found["command"])
        except (KeyError, TypeError) as error:
            raise StorageError(f"{path}: expected an evaluation, found other JSON ({error}). Name "
                               "another file.") from error


def _plus_minus(form: str, values: tuple[float, float]) -> str:
    mean, half = values
    return f"{form.format(100 * mean)} ± " + ("?" if math.isnan(half) else f"{100 * half:.1f}")
