"""What an adaptation came to: whether it helped, and its card."""

import importlib.metadata
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dreamda_aug.adaptation.training_state import Progress
from dreamda_aug.models.adapted import read_card

Verdict = Literal["helped", "did not help", "not measured"]

# How often "helped" may be wrong, and how many ways to flip signs are tried to tell.
_LEVEL, _FLIPS = 0.05, 4096
DID_NOT_HELP = "adaptation did not help on held-out images"


def best_gain(measured: Tensor) -> tuple[float, float]:
    """How far the loss fell at the best step, and how far the best may by chance, at 5 %.

    If training helped no image more than it harmed another, each image could as well have changed
    the other way around. So the signs of the images' changes are flipped in all ways, or in many,
    and the best step is chosen anew each time: the choice is part of what chance may do. Fewer
    than 5 images can show nothing at this level.

    Args:
        measured: loss of each image at each measurement, (M, N), of the same noise and noise
            levels; the first one before training.

    Source: Fisher's randomization test of paired differences, with the maximum over steps as its
        statistic: Westfall & Young 1993, "Resampling-based multiple testing".
    """
    fell = (measured[0] - measured).double()
    count = fell.shape[1]
    if 2**count <= _FLIPS:
        flips = torch.arange(2**count)[:, None] >> torch.arange(count) & 1
    else:
        generator = torch.Generator().manual_seed(0)
        flips = torch.randint(2, (_FLIPS, count), generator=generator)
        flips[0] = 0
    best = ((1 - 2 * flips).double() @ fell.T / count).amax(1)
    by_chance = best.sort(descending=True).values[int(_LEVEL * len(best))]
    return best[0].item(), by_chance.item()


@dataclass(frozen=True)
class Adaptation:
    """A finished adaptation.

    Attributes:
        out: its folder, which ``load_model(..., lora=out)`` takes.
        steps: optimizer steps that were made.
        best_step: the step whose weights were kept; 0 is the model without adaptation.
        before: held-out loss of the model without adaptation, or None where none was measured.
        after: held-out loss after ``best_step``.
        chance: what it could have fallen by chance, at a level of 5 %, or None.
        verdict: "helped" where it fell by more than that.
        history: (step, mean training loss since the last measurement, held-out loss).
        left_out: images that could not be read.
        started_from: the class or prompt of the model that each class began as.
    """

    out: Path
    steps: int
    best_step: int
    before: float | None
    after: float | None
    chance: float | None
    verdict: Verdict
    history: list[tuple[int, float | None, float]]
    left_out: list[str]
    started_from: dict[str, str]

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            return f"{self.out}: {self.steps} steps, not measured"
        return (f"{self.out}: held-out loss {self.before:.5f} -> {self.after:.5f} at step "
                f"{self.best_step} of {self.steps} (fell by "
                f"{self.before - self.after:.5f}, chance {self.chance:.5f}): {self.verdict}")


def conclude(progress: Progress) -> dict[str, Any]:
    """The card's entry ``loss``, with the verdict in it."""
    found: dict[str, Any] = {"steps": progress.step, "best_step": progress.best_step,
                             "history": progress.history}
    if not progress.measured:
        return found | {"verdict": "not measured", "before": None, "after": None, "chance": None}
    fell, chance = best_gain(torch.tensor(progress.measured))
    return found | {"verdict": "helped" if fell > chance else "did not help", "chance": chance,
                    "before": progress.history[0][2], "after": progress.best_loss}


def read_adaptation(folder: Path) -> Adaptation:
    """The finished adaptation of a folder; warns where it did not help."""
    card = read_card(folder)
    loss = {**card["loss"], "history": [tuple(entry) for entry in card["loss"]["history"]]}
    found = Adaptation(folder, left_out=card["left_out"],
                       started_from=card["classes"]["started_from"], **loss)
    if found.verdict == "did not help":
        few = " (fewer than 5 images can show no more)" if card["data"]["held_out"] < 5 else ""
        warnings.warn(
            f"{DID_NOT_HELP}: their loss went from {found.before:.5f} to {found.after:.5f}, and "
            f"may fall by {found.chance:.2g} by chance{few}. Step {found.best_step} was kept; "
            "the model without adaptation may be as good.", stacklevel=4)
    return found


def versions(*libraries: str) -> dict[str, str]:
    """The installed version of each library."""
    return {name: importlib.metadata.version(name) for name in libraries}


def data_name(source: Any) -> str:
    """What a source is called in a card, without a path of this machine."""
    return Path(source).name if isinstance(source, str | Path) else type(source).__name__
