"""What the synthetic images of an ablation look like, beside the accuracy that they bring."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.accuracy.report import summary
from benchmarks.accuracy.runs import Run, Setup, images_of, judge_of, pool_of
from benchmarks.accuracy.tasks import Split
from dreamda_aug.evaluation.training import predict
from dreamda_aug.metrics import classifier_features, frechet_distance, kernel_distance
from dreamda_aug.metrics.distances import SmallSampleWarning, replica_diversity
from dreamda_aug.metrics.features import pixel_features

REFERENCE = 2000  # real training images that fidelity is measured against
_MARKERS = "o^sDvPX*<>dph"
FIGURES = ("frechet", "kernel", "agreement", "distance", "diversity")


def measure(setup: Setup, run: Run) -> dict[str, float | None]:
    """Figures of one pool.

    Returns:
        ``frechet`` and ``kernel``: distances to real training images, on the judge's features
        (pixels where the task has no judge), so they compare within a task only; ``agreement``:
        share of images whose seed label the judge confirms; ``distance`` to the seed image and
        ``diversity`` between its replicas: root mean square over pixels, in [0, 1].
    """
    images, pool, judge = images_of(setup, run), pool_of(setup, run), judge_of(setup)
    frechet, kernel = fidelity(setup, images, pool.pixels)
    flat = pool.pixels.flatten(1).float() / 255
    seeds = images.shots.pixels.flatten(1).float() / 255
    seed_index = torch.arange(len(flat)) // run.spec.replicas
    root = flat.shape[1] ** 0.5
    return {
        "frechet": frechet,
        "kernel": kernel,
        "agreement": None if judge is None else (
            predict(judge, pool.pixels, setup.device) == pool.seed_labels).float().mean().item(),
        "distance": (flat - seeds[seed_index]).double().norm(dim=1).mean().item() / root,
        "diversity": replica_diversity(flat, seed_index) / root,
    }  # fmt: skip


def fidelity(setup: Setup, images: Split, pixels: Tensor) -> tuple[float, float]:
    """Fréchet and kernel distance of uint8 images to real training images."""
    judge = judge_of(setup)
    features = pixel_features() if judge is None else classifier_features(judge)
    order = torch.randperm(len(images.rest), generator=torch.Generator().manual_seed(0))
    real, made = (torch.cat([features(part.to(setup.device).float() / 255).cpu()
                             for part in each.split(500)])
                  for each in (images.rest.pixels[order[:REFERENCE]], pixels))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallSampleWarning)  # sets of one size are compared
        frechet = frechet_distance(real, made)
    return frechet, kernel_distance(real, made, subsets=20).mean


def varied(name: str, names: Sequence[str]) -> str:
    """The row that another is compared with: the longest that its name begins with, or the first.

    "AMST+ without alignment" with "AMST+", and "AMST+" with "AMST".
    """
    shorter = [other for other in names if other != name and name.startswith(other)]
    return max(shorter, key=len, default=names[0])


def tradeoff_table(runs: list[dict], names: Sequence[str]) -> str:
    """One row per variant: the images, the accuracy that they bring, and the paired gain."""
    lines = ["\n| variant | accuracy, % | gain, paired | Fréchet | kernel | seed labels right "
             "| distance | diversity | pool labels right | accepted |", "|---" * 10 + "|"]
    for name in names:
        base = varied(name, names)
        found = summary(runs, name, runs[0]["shots"], base)
        cells = ["{:.1f} ± {:.1f}".format(100 * found["mean"], 100 * found["half"]),
                 "–" if name == base else "{:+.1f} ± {:.1f} over {}".format(
                     *(100 * value for value in found["gain"]), base)]  # fmt: skip
        rows = [run for run in runs if run["arm"] == name]
        for figure, form in zip((*FIGURES, "labels_right", "accepted"),
                                ("{:.1f}", "{:.3f}", "{:.0%}", "{:.3f}", "{:.3f}", "{:.0%}",
                                 "{:.0%}"), strict=True):
            values = [row[figure] for row in rows if row[figure] is not None]
            cells.append(form.format(sum(values) / len(values)) if values else "–")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot_tradeoff(runs: list[dict], names: Sequence[str], path: Path) -> None:
    """Accuracy, fidelity and label agreement over the distance from the seed image.

    A marker for each kind of images, a colour for each way to label them, where there are several.
    """
    from matplotlib.figure import Figure

    figure = Figure((13, 4.2), layout="constrained")
    panels = (("test", "test accuracy"), ("frechet", "Fréchet distance to real images"),
              ("agreement", "share of seed labels that are right"))  # fmt: skip
    parts = {name: (name.removesuffix(f", {label}"), label) for name in names
             for label in [name.rpartition(", ")[2] if name.endswith(" labels") else ""]}
    images, labels = (list(dict.fromkeys(column)) for column in zip(*parts.values(), strict=True))
    for axes, (value, title) in zip(figure.subplots(1, 3), panels, strict=True):
        for name, (image, label) in parts.items():
            rows = [run for run in runs if run["arm"] == name and run[value] is not None]
            if rows:
                x, y = (sum(row[key] for row in rows) / len(rows) for key in ("distance", value))
                # images alone decide the other panels
                colour = f"C{labels.index(label)}" if value == "test" else "0.3"
                axes.plot(x, y, _MARKERS[images.index(image) % len(_MARKERS)], color=colour)
        axes.set_xlabel("RMS pixel distance from the seed image")
        axes.set_title(title)
        axes.grid(alpha=0.3)
    for number, image in enumerate(images):
        axes.plot([], [], _MARKERS[number % len(_MARKERS)], color="0.3", label=image)
    for number, label in enumerate(labels if len(labels) > 1 else []):
        axes.plot([], [], "_", color=f"C{number}", markeredgewidth=4, label=label)
    figure.legend(loc="outside right", fontsize=8)
    figure.savefig(path, dpi=110)
