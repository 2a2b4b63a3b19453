"""Tables and plots of the accuracy study."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy.arms import Arm
from benchmarks.common.statistics import interval


def of_arm(runs: list[dict], arm: str, shots: int, name: str) -> dict[int, float]:
    """One figure of an arm, rng seed -> value, where it has one."""
    return {run["rng_seed"]: run[name] for run in runs
            if run["arm"] == arm and run["shots"] == shots and run[name] is not None}  # fmt: skip


def summary(runs: list[dict], arm: str, shots: int, baseline: str) -> dict[str, object]:
    """Mean, interval, paired gain over the baseline and costs of one arm; in shares of 1."""
    found = of_arm(runs, arm, shots, "test")
    mean, half = interval(list(found.values()))
    base = of_arm(runs, baseline, shots, "test")
    # paired: the same rng seed draws the same labelled images for all arms
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
        lines += [f"\n## {count} labelled images per class\n",
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


def closed_gap(runs: list[dict], arm: str, shots: int, baseline: str, ceiling: str) -> float | None:
    """Share of the way from the baseline's mean to the ceiling's that an arm covers."""
    means = [interval(list(found.values()))[0] if found else None
             for found in (of_arm(runs, name, shots, "test") for name in (arm, baseline, ceiling))]
    if None in means or means[2] == means[1]:
        return None
    return (means[0] - means[1]) / (means[2] - means[1])


def comparisons(runs: list[dict], arms: Sequence[Arm], shots: Sequence[int], baseline: str,
                ceilings: dict[str, str]) -> list[dict]:  # fmt: skip
    """Our arms against the best classical one, and how much of the gap to true labels they close.

    Args:
        runs: their results.
        arms: those that were run.
        shots: numbers of labelled images per class.
        baseline: where the gap begins.
        ceilings: our arms, and the arm where the gap of each ends.

    Which classical arm is best is judged by test means, to our disadvantage.
    """
    names = [arm.name for arm in arms]
    rows = []
    for count in shots:
        classical = {arm.name: summary(runs, arm.name, count, baseline)["mean"]
                     for arm in arms if arm.is_classical}  # fmt: skip
        best = max(classical, key=classical.get, default=None)
        rows += [{"arm": arm, "shots": count, "best_classical": best,
                  "margin": best and summary(runs, arm, count, best)["gain"], "ceiling": ceiling,
                  "gap_closed": closed_gap(runs, arm, count, baseline, ceiling)}
                 for arm, ceiling in ceilings.items() if arm in names]  # fmt: skip
    return rows


def sentences(row: dict, baseline: str) -> list[str]:
    """One of the `comparisons`, for people."""
    start, lines = f"At {row['shots']} per class, {row['arm']}", []
    if row["margin"]:
        margin = "{:+.1f} ± {:.1f}".format(*(100 * value for value in row["margin"]))
        lines.append(f"{start} minus {row['best_classical']}, the best classical arm: {margin}.")
    if row["gap_closed"] is not None:
        lines.append(f"{start} closes {row['gap_closed']:.0%} of the gap between {baseline} and "
                     f"{row['ceiling']} (the same images).")  # fmt: skip
    return lines


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
