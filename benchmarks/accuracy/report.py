"""Tables and plots of the accuracy study."""

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.accuracy.arms import OURS, Arm
from dreamda_aug.statistics import interval


def of_arm(runs: list[dict], arm: str, shots: int, name: str) -> dict[int, float]:
    """One figure of an arm, rng seed -> value, where it has one."""
    return {run["rng_seed"]: run[name] for run in runs
            if run["arm"] == arm and run["shots"] == shots and run[name] is not None}  # fmt: skip


def summary(runs: list[dict], arm: str, shots: int, baseline: str) -> dict[str, object]:
    """Mean, interval, paired gain over the baseline and costs of one arm; in shares of 1."""
    found = of_arm(runs, arm, shots, "test")
    mean, half = interval(list(found.values()))
    base = of_arm(runs, baseline, shots, "test")
    # paired: the same rng seed draws the same labeled images for all arms
    gains = [value - base[rng_seed] for rng_seed, value in found.items() if rng_seed in base]
    answer = {"arm": arm, "shots": shots, "rng_seeds": len(found), "mean": mean, "half": half,
              "gain": interval(gains) if gains else None}  # fmt: skip
    for name in ("labels_right", "accepted", "training_seconds", "generation_seconds"):
        values = list(of_arm(runs, arm, shots, name).values())
        answer[name] = sum(values) / len(values) if values else None
    return answer


def table(runs: list[dict], arms: Sequence[str], shots: Sequence[int], baseline: str) -> str:
    """A Markdown table for each number of shots; arms without a run are left out."""
    lines = []
    for count in shots:
        lines += [f"\n## {count} labeled images per class\n",
                  f"| arm | accuracy, % | gain over {baseline} | pool labels right | accepted "
                  "| training, CPU s | generation, CPU s |", "|---|---|---|---|---|---|---|"]
        for arm in arms:
            if not of_arm(runs, arm, count, "test"):
                continue
            row = summary(runs, arm, count, baseline)
            gain = "–" if row["gain"] is None or arm == baseline else (
                "{:+.1f} ± {:.1f}".format(*(100 * value for value in row["gain"])))
            right, accepted = (
                "–" if row[name] is None else f"{row[name]:.0%}"
                for name in ("labels_right", "accepted"))
            lines.append(
                f"| {arm} | {100 * row['mean']:.1f} ± {100 * row['half']:.1f} | {gain} | {right} "
                f"| {accepted} | {row['training_seconds']:.0f} | {row['generation_seconds']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def comparisons(runs: list[dict], arms: Sequence[Arm], shots: Sequence[int]) -> list[dict]:
    """The best of our arms against the best classical one and the strongest other diffusion arm.

    Ours is the best DreamDA arm that a user could run (true labels are nobody's); the others are
    the best by test means, to our disadvantage. Other diffusion arms have seed labels. Arms that
    start from a pretrained classifier are compared among themselves.
    """
    rows = []
    for count, pretrained in [(count, start) for count in shots for start in (False, True)]:
        mean = {arm.name: summary(runs, arm.name, count, arm.name)["mean"] for arm in arms
                if arm.pretrained == pretrained and of_arm(runs, arm.name, count, "test")
                }  # fmt: skip

        def best(wanted: Callable[[Arm], bool], mean: dict[str, float] = mean) -> str | None:
            return max((arm.name for arm in arms if wanted(arm) and arm.name in mean),
                       key=mean.__getitem__, default=None)  # fmt: skip

        ours = best(lambda arm: arm.recipe in OURS and arm.labels != "oracle")
        others = {
            "the best classical arm": best(lambda arm: arm.is_classical),
            "the strongest other diffusion arm": best(
                lambda arm: arm.is_diffusion and arm.recipe not in OURS and arm.labels == "seed"),
        }  # fmt: skip
        if ours:
            rows += [{"shots": count, "arm": ours, "other": other, "what": what,
                      "margin": summary(runs, ours, count, other)["gain"]}
                     for what, other in others.items() if other]  # fmt: skip
    return rows


def sentences(row: dict) -> list[str]:
    """One of the `comparisons`, for people."""
    margin = "{:+.1f} ± {:.1f}".format(*(100 * value for value in row["margin"]))
    return [f"At {row['shots']} per class, {row['arm']} minus {row['other']}, {row['what']}: "
            f"{margin}."]  # fmt: skip


def plot_by_number(
    runs: list[dict], lines: dict[str, dict[int, str]], axis: str, path: Path
) -> None:
    """Mean accuracy and interval over a number, such as labeled images per class.

    Args:
        runs: with ``arm``, ``shots`` and ``test``.
        lines: name of each line -> number -> arm; an arm of one number may stand for several.
        axis: what the number is; ``"shots"`` picks runs of that many.
    """
    from matplotlib.figure import Figure

    figure = Figure((8, 4.2), layout="constrained")
    axes = figure.subplots()
    numbers = sorted({number for arms in lines.values() for number in arms})
    for place, (name, arms) in enumerate(lines.items()):
        found = {number: interval([100 * run["test"] for run in runs if run["arm"] == arm
                                   and (axis != "shots" or run["shots"] == number)])
                 for number, arm in arms.items()}  # fmt: skip
        x = [numbers.index(number) + 0.04 * (place - len(lines) / 2) for number in found]
        axes.errorbar(x, [mean for mean, _ in found.values()],
                      yerr=[half for _, half in found.values()], fmt="o-", capsize=3,
                      markersize=4, label=name)  # fmt: skip
    axes.set_xticks(range(len(numbers)), [str(number) for number in numbers])
    axes.set_xlabel("labeled images per class" if axis == "shots" else axis)
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right", fontsize=8)
    figure.savefig(path, dpi=110)


def plot(runs: list[dict], arms: Sequence[str], shots: Sequence[int], title: str,
         path: Path) -> None:  # fmt: skip
    """Mean and interval of every arm, and every single run, one panel per number of shots."""
    from matplotlib.figure import Figure

    figure = Figure((4.5 * len(shots) + 2.5, 0.3 * len(arms) + 1.2), layout="constrained")
    for axes, count in zip(figure.subplots(1, len(shots), sharey=True, squeeze=False)[0], shots,
                           strict=True):  # fmt: skip
        for place, arm in enumerate(reversed(arms)):
            values = [100 * v for v in of_arm(runs, arm, count, "test").values()]
            if values:
                mean, half = interval(values)
                axes.plot(values, [place] * len(values), ".", color="0.65", markersize=4)
                axes.errorbar(mean, place, xerr=half, fmt="o", color="C0", capsize=3)
        axes.set_yticks(range(len(arms)), reversed(arms))
        axes.set_title(f"{count} per class")
        axes.set_xlabel("test accuracy, %")
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
