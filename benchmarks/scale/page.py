"""A plot and a table of how time and memory grow."""

import json
from pathlib import Path
from typing import Any

from benchmarks.common.marked import fill_places, table


def plot(record: dict[str, Any], path: Path) -> None:
    """Time of each stage over size, on logarithmic axes, a panel for each subject."""
    from matplotlib.figure import Figure

    subjects = list(dict.fromkeys(curve["subject"] for curve in record["curves"]))
    figure = Figure(figsize=(4.2 * len(subjects), 3.6), layout="constrained")
    for number, subject in enumerate(subjects):
        axes = figure.add_subplot(1, len(subjects), number + 1)
        for curve in record["curves"]:
            if curve["subject"] == subject:
                axes.loglog(curve["sizes"], curve["seconds"], "o-", label=curve["stage"])
        axes.set(xlabel=subject, ylabel="seconds" if number == 0 else "")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def write_docs(folder: Path, page: Path) -> None:
    """Fill the places ``scale/growth``, ``scale/memory`` and ``scale/ahead`` of a page.

    Args:
        folder: with ``growth.json``, ``memory.json`` and ``ahead.json``, or some of them.
        page: the Markdown file; what stands between its marks is replaced.
    """
    texts = {"growth": summary, "memory": memory_summary, "ahead": ahead_summary}
    fill_places(page, {
        f"scale/{name}": text(json.loads((folder / f"{name}.json").read_text()))
        for name, text in texts.items() if (folder / f"{name}.json").exists()})


def memory_summary(record: dict[str, Any]) -> str:
    """By how much the peak of memory rose on the way through a dataset."""
    rises = [
        f"by {result['peak_mb_on_the_way'][-1] - result['peak_mb_on_the_way'][0]} MB in batches of "
        f"{result['batch_size']}" for result in record["results"]]
    return (f"Over {record['images']:,} seed images and {record['images'] * record['ratio']:,} "
            f"samples of the bundled model, the peak rose {', '.join(rises)} after the first batch "
            "(`python -m benchmarks.scale memory`).")


def ahead_summary(record: dict[str, Any]) -> str:
    """How much slower training was beside the process."""
    return (f"Training ({record['classifier']}) beside it ran at {record['throughput']:.0%} of its "
            f"speed on files (clock time, median of {len(record['seconds_on_files']) // 2} epochs; "
            f"{record['machine']}). {record['freshness'].capitalize()}.")


def summary(record: dict[str, Any]) -> str:
    """Exponents and memory as a table."""
    rows = []
    for curve in record["curves"]:
        sizes = " to ".join(f"{size:,}" for size in dict.fromkeys(
            (curve["sizes"][0], curve["sizes"][-1])))
        memory = " to ".join(f"{value:.0f}" for value in (
            curve["memory_mb"][0], curve["memory_mb"][-1]))
        power = curve["exponent"]
        rows.append([curve["subject"], sizes, curve["stage"],
                     "–" if power is None else f"{round(power, 1) + 0:.1f}", f"{memory} MB"])
    return (
        "Processor time grows as size to this power: 1 is in proportion, 0 is not at all. Memory "
        f"is what a stage took above its start. {record['machine']}, commit {record['commit']}; "
        "the machine may have had other work, so no times are given.\n\n"
        + table(["what grows", "from, to", "stage", "power", "memory"], rows))
