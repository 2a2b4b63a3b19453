"""Does it help? Classifiers trained with synthetic images against what people use today.

    python -m benchmarks.accuracy fashion_mnist --data FOLDER
    python -m benchmarks.accuracy cifar10 --data FOLDER --export images/  # then dreamda train
    python -m benchmarks.accuracy cifar10 --data FOLDER --model my_model --minutes 9
    python -m benchmarks.accuracy usps --data usps.npz --ablation strength
    python -m benchmarks.accuracy usps --data usps.npz --quick

Every choice (of augmentation, guidance, strength and replay) is made on labeled validation
images, with rng seeds that are not among the reported ones; the test set is looked at once, with
the final weights. Results, pools and choices are kept in --state: the same command goes on where
the last
one stopped, and trains again only what its code or settings have changed. Where the state is gone,
--choices RESULT.json takes the choices from a result. Tasks and the layout of their files are in
tasks.py, the arms in arms.py, how images are made in recipes.py, how classifiers are trained in
training.py.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torchvision.transforms.v2.functional import to_pil_image

from benchmarks import RESULTS
from benchmarks.accuracy.ablations import ABLATIONS
from benchmarks.accuracy.arms import CHOSEN, MAIN
from benchmarks.accuracy.estimate import estimate
from benchmarks.accuracy.pools import Stopped
from benchmarks.accuracy.presets import presets
from benchmarks.accuracy.regret import measure
from benchmarks.accuracy.runs import Setup, judge_of
from benchmarks.accuracy.smoke import smoke
from benchmarks.accuracy.study import Selection, ablation, study
from benchmarks.accuracy.tasks import TASKS, Task


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one study, one ablation, or what else is asked for."""
    args = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    if args.export:
        return export(TASKS[args.task], args.data, args.export)
    task = replace(TASKS[args.task], corpus=args.corpus)
    if args.steps is not None:
        task = replace(task, steps=args.steps)
    setup = Setup(task, args.data, args.state, args.model, args.weights,
                  args.device, time.time() + 60 * args.minutes)  # fmt: skip
    if args.smoke:
        setup = smoke(setup)
    selection = Selection(
        args.out, tuple(args.rng_seeds),
        tuple(args.shots or (count for count, _ in setup.task.shots)),
        args.arms and tuple(args.arms), args.replicas, args.choices, args.processes,
    )  # fmt: skip
    if args.quick:
        selection = quick(setup, selection)
    if args.dry_run:
        return print(estimate(setup, selection))
    judge_of(setup)
    try:
        if args.presets:
            presets(setup, selection.out, selection.arms, selection.processes)
        elif args.regret:
            for shots in selection.shots:
                for rng_seed in selection.rng_seeds:
                    measure(setup, selection.out, shots, rng_seed)
        elif args.ablation:
            ablation(setup, selection, args.ablation)
        else:
            study(setup, selection)
    except Stopped:
        print(f"stopped after {args.minutes:g} minutes; the same command goes on")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.accuracy", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", type=Path, required=True, help="folder or file of the images")
    parser.add_argument("--out", type=Path, default=RESULTS / "accuracy",
                        help="folder for tables, plots and JSON")
    parser.add_argument("--state", type=Path, default=Path("build/accuracy"),
                        help="folder for pools, runs and choices")
    parser.add_argument("--model", help="folder of the diffusion model")
    parser.add_argument("--corpus", type=Path,
                        help="idx files of what the model was trained on, for further arms")
    parser.add_argument("--weights", type=Path,
                        help="ImageNet's resnet18 or mobilenet_v2, for arms on frozen features")
    parser.add_argument("--arms", nargs="+", help="names, of an ablation's rows too; default: all")
    parser.add_argument("--shots", nargs="+", type=int, help="all of the task by default")
    parser.add_argument("--steps", type=_multiple_of_eight,
                        help="optimizer steps of every arm; default: the task's")
    parser.add_argument("--rng-seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"),
                        help="begin nothing new after this time; the same command goes on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ablation", choices=ABLATIONS)
    parser.add_argument("--presets", action="store_true",
                        help="no classifiers: what settings cost, and how far images go")
    parser.add_argument("--regret", action="store_true",
                        help="let `evaluate` choose in each draw, and test what it considered")
    parser.add_argument("--choices", type=Path,
                        help="JSON of an earlier result: take its choices; of another task's, "
                             "those of recipes")
    parser.add_argument("--replicas", type=int,
                        help="images per labeled one in an ablation; default: the task's")
    parser.add_argument("--dry-run", action="store_true",
                        help="print how much of the main table is missing")
    parser.add_argument("--quick", action="store_true",
                        help="the headline in minutes: few arms, three draws; results go to "
                             "build/quick")
    parser.add_argument("--smoke", action="store_true", help="two classes, a few steps, to try it")
    parser.add_argument("--export", type=Path, help="write the training images here, and stop")
    return parser.parse_args(arguments)


def _multiple_of_eight(text: str) -> int:
    value = int(text)
    if value < 8 or value % 8:
        raise argparse.ArgumentTypeError(f"must be a multiple of eight, AMST's parts, got {value}")
    return value


def quick(setup: Setup, selection: Selection) -> Selection:
    """The few arms that the headline speaks of, with the choices of the recorded study."""
    recorded = RESULTS / "accuracy" / f"{setup.task.name}.json"
    if not recorded.exists():
        raise SystemExit(f"--quick takes the choices of {recorded}, which is not there.")
    arms = [json.loads(recorded.read_text())["choices"][CHOSEN]["chosen"], *MAIN]
    arms[0] = setup.task.classical[arms[0]]
    return replace(selection, out=Path("build/quick"), rng_seeds=(0, 1, 2), arms=tuple(arms),
                   shots=(setup.task.shots[0][0],), choices=recorded)  # fmt: skip


def export(task: Task, data: Path, folder: Path) -> None:
    """Write the training images as PNG, in class folders, for `dreamda train`.

    Without labels (all in one folder) unless the model is to be class-conditional.
    """
    train, _ = task.read(data)
    for number, (pixels, label) in enumerate(zip(train.pixels, train.labels.tolist())):
        place = folder / (f"{label:03d}" if task.class_conditional else "images")
        place.mkdir(parents=True, exist_ok=True)
        to_pil_image(pixels).save(place / f"{number:06d}.png")


if __name__ == "__main__":
    main()
