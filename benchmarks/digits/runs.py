"""All arms with one rng seed, and the table of all rng seeds."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.digits.arms import run_arm
from benchmarks.digits.data import RunData
from dreamda_aug.amst.labeling import CollapseWarning
from dreamda_aug.statistics import interval


@dataclass(frozen=True)
class Job:
    """What one process does at a time.

    Attributes:
        rng_seed: draws the labeled images and everything else.
        folder: where the model lies and synthetic images are kept.
        validation: hold out the unused training digits in place of the test set.
        arms: names of the arms to train.
    """

    rng_seed: int
    folder: Path
    validation: bool
    arms: tuple[str, ...]


def perform(job: Job) -> dict[str, dict[str, float]]:
    """Train and evaluate all arms with one rng seed."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", CollapseWarning)
    data = RunData(job.rng_seed, job.folder, job.validation)
    results = {"seed labels right": (data.truth == data.seed_labels).float().mean().item()}
    for arm in job.arms:
        start = time.process_time()
        training = run_arm(data, arm)
        classifier = training.wrapper.to_classifier().eval()
        with torch.no_grad():
            right = classifier(data.held_out).argmax(1) == data.held_out_labels
        report = training.reports[-1] if training.reports else None
        results[arm] = {
            "accuracy": right.float().mean().item(),
            "accepted": report.accepted_share if report else None,
            "labels right": report.accuracy if report else None,
            "CPU seconds": time.process_time() - start,
        }
    return results


def table(runs: list[dict], arms: Sequence[str]) -> str:
    """A Markdown table with one row per arm."""
    lines = ["| labels of the synthetic images | accuracy | accepted | of these right | CPU s |",
             "|---|---|---|---|---|"]  # fmt: skip
    for arm in arms:
        cells = []
        for name, form in (("accuracy", "{:.3f} ± {:.3f}"), ("accepted", "{:.0%}"),
                           ("labels right", "{:.1%}"), ("CPU seconds", "{:.0f}")):  # fmt: skip
            values = [run[arm][name] for run in runs if run[arm][name] is not None]
            cells.append(form.format(*interval(values)) if values else "–")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)
