"""What a small study found, with intervals, and what follows from it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dreamda_aug.files import write_atomically

# Student's t, 97.5 %, by degrees of freedom 1, 2, ...; beyond them close to the last.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
      2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval, by Student's t; nan for a single value."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, _T[min(count - 1, len(_T)) - 1] * math.sqrt(variance / count)


@dataclass(frozen=True)
class Evaluation:
    """Accuracies of one small study; equal draws are paired between arms.

    Attributes:
        accuracies: arm -> accuracy of each draw, in [0, 1], averaged over classes.
        same_label: arm -> share of the accepted labels of synthetic images that are the seed
            image's; how many are right, only people know.
        classical: names of the arms without synthetic images.
        main: the arm that the verdict is about; it was named before anything was measured.
        settings: what the study was run with, in words.
    """

    accuracies: dict[str, list[float]]
    same_label: dict[str, float]
    classical: list[str]
    main: str
    settings: dict[str, str]

    @property
    def best_classical(self) -> str:
        """The classical arm with the highest mean, to our disadvantage."""
        return max(self.classical, key=lambda arm: interval(self.accuracies[arm])[0])

    def gain(self, arm: str) -> tuple[float, float]:
        """Mean and half 95 % interval of an arm's paired gain over the best classical one."""
        base = self.accuracies[self.best_classical]
        return interval([a - b for a, b in zip(self.accuracies[arm], base, strict=True)])

    @property
    def verdict(self) -> str:
        """``"worth it here"``, ``"not worth it here"`` or ``"undecided"``.

        Worth it: the whole interval of the main arm's gain lies above 0. Not worth it: its upper
        end lies below one point. Undecided: anything else; more draws narrow the interval.
        """
        mean, half = self.gain(self.main)
        if math.isnan(half):
            return "undecided"
        if mean - half > 0:
            return "worth it here"
        return "not worth it here" if mean + half < 0.01 else "undecided"

    def __str__(self) -> str:
        """A table with a line per arm, and the verdict."""
        width = max(map(len, self.accuracies))
        lines = [f"{'arm':<{width}}  accuracy, %   gain over {self.best_classical}"]
        for arm, values in self.accuracies.items():
            mean, half = (100 * value for value in interval(values))
            gain = "" if arm == self.best_classical else "{:+.1f} ± {:.1f}".format(
                *(100 * value for value in self.gain(arm)))
            lines.append(f"{arm:<{width}}  {mean:5.1f} ± {half:<4.1f}  {gain}")
        mean, half = (100 * value for value in self.gain(self.main))
        lines.append(
            f"verdict: {self.verdict} ({self.main} minus {self.best_classical}: {mean:+.1f} ± "
            f"{half:.1f} points, 95 % interval over {len(self.accuracies[self.main])} draws)")
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write everything as JSON, as a whole or not at all."""
        facts = asdict(self) | {"best_classical": self.best_classical, "verdict": self.verdict,
                                "gain": self.gain(self.main)}
        text = json.dumps(facts, indent=2).replace("NaN", "null")
        write_atomically(Path(path), (text + "\n").encode())
