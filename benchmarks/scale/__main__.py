"""Do planning, resuming and memory stay small when a dataset is large?

    python -m benchmarks.scale growth --out benchmarks/results
    python -m benchmarks.scale expansion --out benchmarks/results
    python -m benchmarks.scale memory --out benchmarks/results
    python -m benchmarks.scale ahead --out benchmarks/results --docs docs/cost.md

"growth" measures how time and memory grow with the images that are planned (up to 100,000), with
the entries of a cache (100,000) and with the lines of a manifest (1,000,000).

"expansion" expands a folder of 10,000 tiny images with a tiny model, stops half-way, and goes on.
"memory" goes through an AugmentedDataset of 1,000 seed images and 5,000 synthetic ones, in small
batches and in large ones. "ahead" trains beside a process that makes images; it wants two free
cores.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common.provenance import commit, machine_and_torch
from benchmarks.scale.ahead import measure_ahead
from benchmarks.scale.expansion import measure_expansion
from benchmarks.scale.growth import measure_growth
from benchmarks.scale.memory import measure_memory
from benchmarks.scale.page import plot, write_docs


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the record if a folder is given."""
    args = parse(arguments)
    torch.set_num_threads(1)
    if args.question == "growth":
        name = "growth"
        record = {"curves": measure_growth(args.largest), "largest": args.largest,
                  "machine": machine_and_torch("cpu"), "commit": commit(),
                  "load": os.getloadavg()[0]}
    elif args.question == "memory":
        name = "memory"
        record = measure_memory(args.images, args.ratio, args.steps, args.batch_sizes)
    elif args.question == "ahead":
        name = "ahead"
        record = measure_ahead(args.images, args.ratio, args.epochs, args.limit) | {
            "machine": machine_and_torch("cpu"), "commit": commit(), "load": os.getloadavg()[0]}
    else:
        name = f"expand_scale_{args.format}"
        record = measure_expansion(args.images, args.classes, args.ratio, args.batch_size,
                                   args.format)
    text = json.dumps(record, indent=2)
    print(text)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"{name}.json").write_text(text + "\n")
        if args.question == "growth":
            plot(record, args.out / "growth.png")
        if args.docs:
            write_docs(args.out, args.docs)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.scale", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    questions = parser.add_subparsers(dest="question", required=True)
    growth = questions.add_parser("growth", help="curves of time and memory over size")
    growth.add_argument("--largest", type=int, default=1_000_000, help="leave out larger sizes")
    expansion = questions.add_parser("expansion", help="planning and resuming a large folder")
    expansion.add_argument("--images", type=int, default=10_000)
    expansion.add_argument("--classes", type=int, default=20)
    expansion.add_argument("--ratio", type=int, default=2)
    expansion.add_argument("--batch-size", type=int, default=32)
    expansion.add_argument("--format", choices=("folder", "webdataset"), default="folder")
    memory = questions.add_parser("memory", help="peak memory of a long run")
    memory.add_argument("--images", type=int, default=1000)
    memory.add_argument("--ratio", type=int, default=5)
    memory.add_argument("--steps", type=int, default=4,
                        help="few: memory hardly depends on them")
    memory.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64], help="rising")
    ahead = questions.add_parser("ahead", help="training on images that are made beside it")
    ahead.add_argument("--images", type=int, default=200, help="seed images, at most 200")
    ahead.add_argument("--ratio", type=int, default=2)
    ahead.add_argument("--epochs", type=int, default=3)
    ahead.add_argument("--limit", type=int, help="batches per epoch")
    for question in (growth, expansion, memory, ahead):
        question.add_argument("--out", type=Path, help="folder for a JSON file")
        question.add_argument("--docs", type=Path, help="Markdown file with marked places, which "
                              "are written anew from the files in --out")
    args = parser.parse_args(arguments)
    if args.docs and not args.out:
        parser.error("--docs is written from the JSON files in --out; give --out too.")
    return args


if __name__ == "__main__":
    main()
