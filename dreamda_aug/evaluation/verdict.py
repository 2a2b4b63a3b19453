"""What a small study found, with intervals, and what follows from it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from dreamda_aug.files import write_atomically
from dreamda_aug.statistics import interval


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
