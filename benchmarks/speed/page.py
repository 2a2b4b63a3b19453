"""Pages of Markdown from the records of ``python -m benchmarks.speed``."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.common.marked import fill_places, table
from benchmarks.speed.arms import IMG2IMG, RELEASED
from benchmarks.speed.rounds import spread

FORMAT = 5


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """The records in a folder, by the name of their model."""
    found = {}
    for path in sorted(folder.glob("throughput_*.json")):
        record = json.loads(path.read_text())
        if record.get("format") == FORMAT:
            found[path.stem.removeprefix("throughput_")] = record
    return found


def write_page(folder: Path, page: Path) -> None:
    """Write a page with a section for each record.

    Args:
        folder: with ``throughput_*.json``.
        page: the Markdown file.
    """
    head = (
        "# Throughput\n\n*Written by `python -m benchmarks.speed` from its records in "
        f"`{os.path.relpath(folder, page.parent)}/`; `--help` says what the runs are.*\n\n"
        "All runs of a section took turns in one process; a ratio is between two runs of the same "
        "turn, its median and, in brackets, the smallest and the largest. Where the machine had "
        "other work, only ratios are shown. With one thread on a CPU, times are processor time. "
        "Costs hold per image; rows are the denoiser's, before and behind the hook, and so are the "
        "operations."
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    sections = [section(record) for record in read_records(folder).values()]
    page.write_text("\n\n".join([head, *sections]) + "\n")


def write_docs(folder: Path, page: Path) -> None:
    """Fill the marked places of a hand-written page: ``<!-- figures: speed/MODEL -->``.

    Args:
        folder: with ``throughput_*.json``.
        page: the Markdown file; what stands between its marks is replaced.
    """
    places = {f"speed/{name}": summary(record) for name, record in read_records(folder).items()}
    parts = {path.stem: json.loads(path.read_text())
             for path in sorted((folder / "gpu").glob("*.json")) if path.stem != "results"}
    if lines := [line for name, part in parts.items() if part["state"] == "done"
                 for line in on_gpu(name, part["result"])]:
        machines = sorted({part["machine"] for part in parts.values()})
        places["speed/gpu"] = f"{'; '.join(machines)}.\n\n" + "\n".join(lines)
    fill_places(page, places)


def on_gpu(part: str, found: Any) -> Iterator[str]:
    """What a part of the plan for a GPU has found, in sentences; speed has records of its own."""
    if part == "exactness":
        lines = [[row["dtype"], f"{row['replay_max_difference']:.2g}",
                  f"{row['alone_or_in_a_batch_mean_difference']:.2g}",
                  f"{row['alone_or_in_a_batch_max_difference']:.2g}"] for row in found]
        yield table(["pixels in [0, 1]", "replay without noise, from what the VAE makes, at most",
                     "a sample alone and in a batch of 4, mean", "at most"], lines) + "\n"
    elif part == "memory":
        peaks = {row["low_memory"]: f"{row['peak_bytes'] / 1e9:.2f} GB" for row in found}
        yield (f"- One sample in {found[0]['dtype'].removeprefix('torch.')} takes {peaks[False]}, "
               f"and {peaks[True]} with `low_memory`.")
    elif part == "compile":
        yield (f"- `compile`: {found['ratio']:.2f} times as fast after a first call of "
               f"{found['first_seconds_on']:.0f} s, differences up to "
               f"{found['max_difference']:.2g}.")
    elif part == "spawn_workers":
        yield (f"- Images of spawned workers differ by {found['workers_max_difference']:.2g} from "
               f"those of the main process, those made ahead by {found['ahead_max_difference']:.2g}"
               " (8 bits: a step is 0.004).")
    elif part == "tests":
        passed = found["tests"] - found["failures"] - found["errors"] - found["skipped"]
        yield (f"- Tests: {passed:,} passed, {found['skipped']} skipped, "
               f"{found['failures'] + found['errors']} failed.")


def summary(record: dict[str, Any]) -> str:
    """The ratios that matter, as a table."""
    lines = [[target["what"], _ratio(target),
              f"{'at most' if target['ceiling'] else 'at least'} {target['goal']:g}×"
              + ("" if target["met"] else ", missed")]
             for target in record["targets"]]
    return f"{facts(record)}\n\n" + table(["cost of", "ratio", "goal"], lines)


def facts(record: dict[str, Any]) -> str:
    """What ran, and on what."""
    size = "×".join(map(str, record["image_size"]))
    text = (
        f"{record['arch']}: {record['machine']}, torch {record['torch']}, diffusers "
        f"{record['diffusers']}, {record['dtype']}; {size} pixels, "
        f"{record['parameters'] / 1e6:.3g} M parameters, {record['steps_run']} steps run "
        "(presets: their own), "
        f"{'guidance 7.5' if record['guided'] else 'no guidance'}, {record['rounds']} turns, "
        f"commit {record['commit']}."
    )
    if is_busy(record):
        text += " The machine had other work: ratios only."
    if record["quick"]:
        text += " **A smoke test with `--quick`: its figures prove nothing.**"
    return text


def is_busy(record: dict[str, Any]) -> bool:
    """Whether more wanted to run on the processor than it has cores."""
    return record["device"] == "cpu" and max(record["load"]) > record["cores"]


def section(record: dict[str, Any]) -> str:
    """All of a record."""
    title = record["arch"] + (", low memory" if record["low_memory"] else "")
    memory = "allocated on the GPU" if record["device"] == "cuda" else "resident, whole process"
    text = f"## {title}\n\n{facts(record)} Peak memory: {memory}."
    if not is_busy(record):
        text += (f" A matrix product ran at {record['matrix_product_rate'] / 1e12:.3g} TFLOP/s in "
                 "the same run.")
    if found := record["exactness"]:
        text += (f" The plain loop's image and ours, from the same seeds, differ by at most "
                 f"{found['max_difference']:.1g} of 1 in a pixel, and by "
                 f"{found['max_difference_in_float32']:.1g} with inversions kept in float32.")
    text += "\n\n" + summary(record).split("\n\n", 1)[1]
    text += "\n\n### All runs\n\n" + runs(record)
    if record["switches"]:
        text += "\n\n### Each switch by itself\n\n" + table(
            ["switch", "off", "time off / on", "first call, on", "peak memory off → on",
             "max. pixel difference"],
            [_switch(row) for row in record["switches"]],
        )
    return text


def runs(record: dict[str, Any]) -> str:
    """A row for each run; times only where nothing else was running."""

    rows = record["arms"]
    peers = {row["batch_size"]: row["times"] for row in rows if row["arm"] == IMG2IMG}
    released = next((row["times"] for row in rows if row["arm"] == RELEASED.format(rows=4)), None)
    head = ["run", "batch", "rows", "GFLOP", "to img2img", "released to it", "peak memory"]
    timed = ["ms", "images/s", "of the matrix-product rate", "images/kWh"]
    lines = []
    for row in rows:
        kwh = row["images_per_kwh"]
        own = row["replicas"] > 0 or row["times"] is released
        cells = [
            row["arm"], str(row["batch_size"]),
            f"{row['encoder_rows']:.1f}, {row['decoder_rows']:.1f}", f"{row['flop'] / 1e9:.3g}",
            # presets and the released run have steps of their own
            "–" if own else _ratio(spread(row["times"], peers[row["batch_size"]])._asdict()),
            _ratio(spread(released, row["times"])._asdict()) if own and released else "–",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
        ]
        if not is_busy(record):
            cells += [f"{1000 * row['seconds']:.3g}", f"{row['images_per_second']:.3g}",
                      f"{row['share_of_matrix_product_rate']:.0%}",
                      "–" if kwh is None else f"{kwh:.3g}"]
        lines.append(cells)
    return table(head if is_busy(record) else head + timed, lines)


def _ratio(found: dict[str, float]) -> str:
    return f"**{found['median']:.2f}×** ({found['low']:.2f}–{found['high']:.2f})"


def _switch(row: dict[str, Any]) -> list[str]:
    if "skipped" in row:
        return [row["switch"], row["instead"], row["skipped"], "", "", ""]
    return [
        row["switch"], row["instead"], f"{row['ratio']:.2f}×",
        f"{row['first_seconds_on']:.0f} s",
        f"{row['peak_bytes_off'] / 1e9:.2f} → {row['peak_bytes_on'] / 1e9:.2f} GB",
        f"{row['max_difference']:.1g}",
    ]
