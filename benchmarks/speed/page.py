"""A page of Markdown from the records of ``python -m benchmarks.speed``."""

import json
import os
from pathlib import Path

FORMAT = 2


def write_page(folder: Path, page: Path) -> None:
    """Write a page with a section for each record.

    Args:
        folder: with ``throughput_*.json``.
        page: the Markdown file.
    """
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("throughput_*.json"))]
    parts = [_section(record) for record in records if record.get("format") == FORMAT]
    head = (
        "# Throughput\n\n*Written by `python -m benchmarks.speed` from its records in "
        f"`{os.path.relpath(folder, page.parent)}/`; `--help` says what the paths are.*\n\n"
        "Exact mode is the algorithm of the plain loop with its number of steps; from the same "
        "seeds the two give the same image, up to the float16 in which inversions are kept. Fast "
        "mode gives other images. Differences are of pixels in [0, 1]. With one thread on a CPU, "
        "times are processor time."
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join([head, *parts]) + "\n")


def _section(record: dict) -> str:
    title = record["arch"] + (", low memory" if record["low_memory"] else "")
    memory = "allocated on the GPU" if record["device"] == "cuda" else "resident, whole process"
    text = (
        f"## {title}\n\n{record['machine']}, torch {record['torch']}, {record['dtype']}; "
        f"{record['image_size'][0]}×{record['image_size'][1]} pixels, "
        f"{record['unet_parameters'] / 1e6:.1f} M parameters in the U-Net, "
        f"{sum(record['flops'].values()) / 1e9:.3g} GFLOP a row; {record['steps_run']} steps run, "
        f"{'guidance 7.5' if record['guided'] else 'no guidance'}, K = {record['replicas']}, "
        "symmetric rule. A matrix product ran at "
        f"{record['matrix_product_rate'] / 1e12:.3g} TFLOP/s in the same run. Peak memory: "
        f"{memory}."
    )
    if record["random_weights"]:
        text += (" Weights are random, so how far fast mode's images are from exact ones says "
                 "nothing about their quality.")
    if record["quick"]:
        text += "\n\n**A smoke test with `--quick`: its figures prove nothing.**"
    text += "\n\n" + _table(
        ["path", "samples/s", "U-Net rows per sample (encoder, decoder)",
         "share of the matrix-product rate", "peak memory", "faster than the plain loop",
         "difference"],
        [[p["path"], f"{p['samples_per_second']:.3g}",
          f"{p['encoder_rows']:.1f}, {p['decoder_rows']:.1f}",
          f"{p['share_of_matrix_product_rate']:.0%}", f"{p['peak_bytes'] / 1e9:.2f} GB",
          " / ".join(f"{s:.1f}×" for s in p["speed_up"]), _difference(p)]
         for p in record["paths"]],
    )
    if record["switches"]:
        text += "\n\n### Each switch by itself\n\n" + _table(
            ["switch", "off", "time off / on", "peak memory off → on", "max. pixel difference"],
            [_switch(row) for row in record["switches"]],
        )
    return text


def _difference(path: dict) -> str:
    if "mean_difference" in path:
        return (f"mean {path['mean_difference']:.2g}, max {path['max_difference']:.2g} from exact "
                f"(two replicas: mean {path['mean_difference_of_replicas']:.2g})")
    if "max_difference" in path:
        return (f"max {path['max_difference']:.1g} from plain, "
                f"{path['max_difference_in_float32']:.1g} with inversions kept in float32")
    return "–"


def _switch(row: dict) -> list[str]:
    if "skipped" in row:
        return [row["switch"], row["instead"], row["skipped"], "", ""]
    return [
        row["switch"], row["instead"], f"{row['ratio']:.2f}×",
        f"{row['peak_bytes_off'] / 1e9:.2f} → {row['peak_bytes_on'] / 1e9:.2f} GB",
        f"{row['max_difference']:.1g}",
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
