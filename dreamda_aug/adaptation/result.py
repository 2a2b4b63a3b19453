"""What an adaptation came to: its verdict, and its card."""

import importlib.metadata
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from dreamda_aug.adaptation.checkpoint import Progress
from dreamda_aug.adaptation.objective import Gain, cross_fitted_gain
from dreamda_aug.models.adapted import read_card

Verdict = Literal["helped", "did not help", "not measured"]

DID_NOT_HELP = "adaptation did not help on held-out images"
_LIBRARIES = ("torch", "diffusers", "peft", "accelerate")


@dataclass(frozen=True)
class Adaptation:
    """A finished adaptation.

    Attributes:
        root: its folder, which ``load_model(..., lora=root)`` takes.
        steps: optimizer steps that were made.
        best_step: the one whose weights were kept; 0: the model is what it was.
        before: held-out loss of the model as it was; None where nothing was held out.
        after: the same after ``best_step``.
        gain: how far it fell on images that had no say in the choice of the step, and how far it
            could have by chance.
        verdict: whether it helped.
        history: after which step, training loss since the last measurement, held-out loss.
        left_out: images that could not be read.
        started_from: for each class, in words, what it was to the model before.
    """

    root: Path
    steps: int
    best_step: int
    before: float | None
    after: float | None
    gain: Gain | None
    verdict: Verdict
    history: list[tuple[int, float | None, float]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    started_from: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.gain is None:
            return f"{self.root}: {self.steps} steps, not measured"
        return (f"{self.root}: held-out loss {self.before:.5f} -> {self.after:.5f} at step "
                f"{self.best_step} of {self.steps} (on images that did not choose it "
                f"it fell by {self.gain.mean:.5f}, chance {self.gain.noise:.5f}): {self.verdict}")


def conclude(progress: Progress) -> dict[str, Any]:
    """The card's entry ``loss``, with the verdict in it."""
    if not progress.before:
        return {"verdict": "not measured", "steps": progress.step, "best_step": progress.step,
                "before": None, "after": None, "gain": None, "history": []}
    before = torch.tensor(progress.before, dtype=torch.float64)
    gain = cross_fitted_gain(before, torch.tensor(progress.measured, dtype=torch.float64))
    return {
        "verdict": "helped" if gain.is_real else "did not help",
        "steps": progress.step, "best_step": progress.best_step,
        "before": before.mean().item(), "after": progress.best_loss,
        "gain": gain._asdict(), "history": progress.history,
    }


def read_adaptation(folder: Path) -> Adaptation:
    """The finished adaptation of a folder; warns where it did not help."""
    card = read_card(folder)
    loss, gain = card["loss"], card["loss"]["gain"]
    found = Adaptation(
        folder, loss["steps"], loss["best_step"], loss["before"], loss["after"],
        None if gain is None else Gain(**gain), loss["verdict"],
        [tuple(entry) for entry in loss["history"]], card.get("left_out", []),
        card["classes"].get("started_from", {}))
    if found.verdict == "did not help" and found.gain is not None:
        warnings.warn(
            f"{DID_NOT_HELP}: their loss fell by {found.gain.mean:.2g} from {found.before:.5f}, "
            f"and {found.gain.noise:.2g} could be chance. Step {found.best_step} was kept; the "
            "model without adaptation is as good.", stacklevel=4)
    return found


def versions() -> dict[str, str]:
    """Of the libraries that decide the result."""
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}
