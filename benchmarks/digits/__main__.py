"""AMST on scikit-learn's digits: does it learn from synthetic images with wrong seed labels?

    python -m benchmarks.digits                # main table, five rng seeds, two processes
    python -m benchmarks.digits --ablations    # the parts of AMST, one at a time
    python -m benchmarks.digits --validation   # what choices were made on: never the test set

A small diffusion model is trained on 1,000 digits without their labels. Each run draws three
labeled images per class from these 1,000, makes ten synthetic images of each, and trains the
same classifier for the same number of steps; arms differ in how the synthetic images are
labeled. The test set is the other 797 digits, looked at once, with the final weights.

"True" labels of synthetic images are those of a support vector machine trained on all 1,000
labeled digits: the ceiling, unreachable in practice. Generation settings, network, views,
learning rate and batch ratio were chosen with --validation: other rng seeds, and the training
digits that are not among the labeled ones in place of the test set.
"""

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import RESULTS
from benchmarks.common.amst_parts import AMST_PARTS
from benchmarks.common.provenance import commit, machine_and_torch
from benchmarks.digits.arms import ARMS
from benchmarks.digits.data import GENERATION, train_model
from benchmarks.digits.runs import Job, perform, table
from dreamda_aug.statistics import interval


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all arms, print the table, and write it down."""
    args = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    start = time.time()
    if not (args.folder / "model").exists():
        train_model(args.folder)
    trained = time.time() - start
    arms = tuple(args.arms or (AMST_PARTS if args.ablations else ARMS))
    jobs = [Job(rng_seed, args.folder, args.validation, arms) for rng_seed in args.rng_seeds]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        runs = pool.map(perform, jobs, chunksize=1)
    seed_right = interval([run["seed labels right"] for run in runs])
    notes = {
        "rng_seeds": args.rng_seeds,
        "held_out": "970 unused training digits" if args.validation else "797 test digits",
        "seed_labels_right": seed_right[0],
        "generation": GENERATION,
        "model_seconds": round(trained),
        "total_seconds": round(time.time() - start),
        "machine": machine_and_torch("cpu"),
        "commit": commit(),
    }
    text = (
        f"# AMST on digits, {len(jobs)} rng seeds, mean ± 95 % interval\n\n"
        f"Held out: {notes['held_out']}. Seed labels right: {seed_right[0]:.1%} ± "
        f"{seed_right[1]:.1%}.\n\n{table(runs, arms)}\n\n"
        f"{notes['total_seconds']} s in {args.processes} processes ({notes['model_seconds']} s "
        f"of them for the model) on {notes['machine']}; commit {notes['commit']}.\n"
    )
    print(text)
    if args.arms is None:
        name = "amst_digits" + "_ablations" * args.ablations + "_validation" * args.validation
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"{name}.md").write_text(text)
        (args.out / f"{name}.json").write_text(
            json.dumps({**notes, "runs": runs}, indent=1) + "\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.digits", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--rng-seeds", nargs="+", type=int,
                        help="default: 0 1 2 3 4, and 100 101 102 103 104 with --validation")
    parser.add_argument("--arms", nargs="+", help="some arms only; nothing is saved then")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/amst_digits"),
                        help="where model and synthetic images are kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for table and JSON")
    args = parser.parse_args(arguments)
    first = 100 if args.validation else 0
    args.rng_seeds = args.rng_seeds or list(range(first, first + 5))
    return args


if __name__ == "__main__":
    main()
