"""Does it help? Classifiers trained with synthetic images against what people use today.

    python benchmarks/accuracy.py fashion_mnist --data FOLDER
    python benchmarks/accuracy.py cifar10 --data FOLDER --export images/  # then train_backbone.py
    python benchmarks/accuracy.py cifar10 --data FOLDER --backbone my_backbone --minutes 9
    python benchmarks/accuracy.py fashion_mnist --data FOLDER --ablation dials

Every choice (img2img's strength, DreamDA's dials) is made on labelled validation images, with an
rng seed that is not among the reported ones; the test set is looked at once, with the final
weights. Results, pools and choices are kept in ``--state``: the same command goes on where the
last one stopped, and trains again only what its code or settings have changed. Where the state is
gone, ``--choices RESULT.json`` takes the choices from a result. Tasks and the layout of their
files: accuracy_tasks.py; arms: accuracy_arms.py; training: accuracy_training.py.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import torch
from accuracy_ablations import ABLATIONS
from accuracy_arms import Arm, arms_of
from accuracy_estimate import estimate
from accuracy_images import measure, plot_tradeoff, tradeoff_table
from accuracy_pools import PoolSpec, Stopped, noise_settings, settings_of
from accuracy_report import comparisons, plot, sentences, summary, table
from accuracy_runs import Run, Setup, commit, judge_of, machine, make_pool, perform, result
from accuracy_smoke import smoke
from accuracy_tasks import TASKS, Task
from torchvision.io import write_png

TUNING_SEEDS = (100, 101, 102)  # the first alone where images must be generated
BASELINE = "real only"
WEAK, AMST, PROBE = "flip + crop", "DreamDA + AMST", "DreamDA, probe labels"
# Our arms -> the same images with true labels.
CEILINGS = {AMST: "DreamDA, oracle labels", PROBE: "DreamDA, oracle labels on RandAugment"}
# Kind of images and what they are tuned for -> the arm that they are tuned with.
TUNED = {
    ("img2img", "seed"): "img2img, seed labels",
    ("img2img", "amst"): "img2img + AMST",
    ("img2img", "probe"): "img2img, probe labels",
    ("dreamda", "seed"): "DreamDA, seed labels",
    ("dreamda", "amst"): AMST,
    ("dreamda", "probe"): PROBE,
}


def candidates(task: Task) -> dict[str, list[PoolSpec]]:
    """Arm name -> pools to choose from on validation, at the smallest number of shots."""
    replicas = task.shots[0][1]
    img2img = [PoolSpec("replicas", replicas, settings_of(task, strength, 0.0, 0.0))
               for strength in task.img2img]  # fmt: skip
    dials = [PoolSpec("replicas", replicas, settings_of(task, *d)) for d in task.dials]
    return {name: img2img if kind == "img2img" else dials for (kind, _), name in TUNED.items()}


def choices_of(setup: Setup, args: argparse.Namespace) -> dict[str, dict]:
    """Those of an earlier result, if ``--choices`` names one; otherwise made now."""
    if args.choices is None:
        return choose(setup, args.processes)
    found = json.loads(args.choices.read_text())
    candidate = {name: [spec.settings.summary() for spec in specs]
                 for name, specs in candidates(setup.task).items()}  # fmt: skip
    known = {name: [each["settings"] for each in choice["candidates"]]
             for name, choice in found["choices"].items() if name != WEAK}  # fmt: skip
    if found["task"] != setup.task.name or known != candidate:
        raise SystemExit(f"--choices must name a result of {setup.task.name} that chose between "
                         f"today's candidates; {args.choices} did not. Leave it out to choose now.")
    return found["choices"]


def choose(setup: Setup, processes: int) -> dict[str, dict]:
    """Tune on validation: arm name -> what was chosen, and what each candidate reached."""
    task, count = setup.task, setup.task.shots[0][0]
    arms = {arm.name: arm for arm in arms_of(task)}
    views = [[Run(replace(arms[WEAK], weak=weak), PoolSpec("none"), count, rng_seed, True)
              for rng_seed in TUNING_SEEDS] for weak in task.weak_views]  # fmt: skip
    told = [f"flip={flip}, padding={padding}" for flip, padding in task.weak_views]
    choices = {WEAK: compare(setup, views, told, processes)}
    weak = task.weak_views[choices[WEAK]["chosen"]]
    wanted = {name: [[Run(replace(arms[name], weak=weak), spec, count, TUNING_SEEDS[0], True)]
                     for spec in specs]
              for name, specs in candidates(task).items()}  # fmt: skip
    make_pools(setup, [run for runs in wanted.values() for run, in runs], processes)
    for name, runs in wanted.items():
        told = [run.spec.settings.summary() for run, in runs]
        choices[name] = compare(setup, runs, told, processes)
    return choices


def compare(setup: Setup, groups: list[list[Run]], names: list[str], processes: int) -> dict:
    """Which group of runs reaches the highest mean validation accuracy, and what all reach."""
    found = iter(perform(result, setup, [run for group in groups for run in group], processes))
    reached = [sum(next(found)["validation"] for _ in group) / len(group) for group in groups]
    return {
        "chosen": max(range(len(groups)), key=reached.__getitem__),
        "candidates": [{"settings": name, "validation": value}
                       for name, value in zip(names, reached, strict=True)],
    }  # fmt: skip


def make_pools(setup: Setup, runs: list[Run], processes: int) -> None:
    """Make the pools of these runs, each once."""
    distinct = {(run.spec, run.shots, run.rng_seed): run for run in runs if run.spec.is_made}
    perform(make_pool, setup, list(distinct.values()), processes)


def spec_of(task: Task, arm: Arm, replicas: int, choices: dict[str, dict]) -> PoolSpec:
    """The pool of an arm, with the settings that were chosen."""
    if not arm.pool:
        return PoolSpec("none")
    if arm.pool == "copies":
        return PoolSpec("copies", replicas)
    if arm.pool == "noise":
        return PoolSpec("noise", replicas, noise_settings(task))
    name = TUNED[arm.pool, arm.tuned_for]
    chosen = candidates(task)[name][choices[name]["chosen"]]
    return replace(chosen, replicas=replicas)


def planned(task: Task, choices: dict[str, dict], arms: list[str], shots: list[int],
            rng_seeds: list[int]) -> list[Run]:  # fmt: skip
    """All runs of the table, the arms of one split together."""
    weak = task.weak_views[choices[WEAK]["chosen"]]
    return [Run(replace(arm, weak=weak), spec_of(task, arm, replicas, choices), count,
                rng_seed)
            for count, replicas in task.shots if count in shots
            for rng_seed in rng_seeds
            for arm in arms_of(task) if arm.name in arms]  # fmt: skip


def study(setup: Setup, args: argparse.Namespace) -> None:
    """The main table of a task."""
    task = setup.task
    choices = choices_of(setup, args)
    runs = planned(task, choices, args.arms, args.shots, args.rng_seeds)
    make_pools(setup, runs, args.processes)
    found = perform(result, setup, runs, args.processes)
    chosen = [arm for arm in arms_of(task) if arm.name in args.arms]
    arms = [arm.name for arm in chosen]
    text = table(found, arms, args.shots, BASELINE)
    compared = comparisons(found, chosen, args.shots, BASELINE, CEILINGS)
    notes = "".join(f"{line}\n" for row in compared for line in sentences(row, BASELINE))
    text += (f"\n{notes}\nChosen on {task.validation_images} validation images at "
             f"{task.shots[0][0]} per class, other rng seeds:\n")
    for name, choice in choices.items():
        text += f"- {name}: {choice['candidates'][choice['chosen']]['settings']}\n"
    rows = [summary(found, arm, count, BASELINE) for count in args.shots for arm in arms]
    write(setup, args, task.name, text, found, choices=choices, summary=rows, compared=compared)
    plot(found, arms, args.shots, task.name, args.out / f"{task.name}.png")


def ablation(setup: Setup, args: argparse.Namespace) -> None:
    """One ablation, at the smallest number of shots."""
    task = setup.task
    choices = choices_of(setup, args)
    count, replicas = task.shots[0]
    arm = next(arm for arm in arms_of(task) if arm.name == AMST)
    base = spec_of(task, arm, args.replicas or replicas, choices)
    variants = [variant for variant in ABLATIONS[args.ablation](base)
                if variant.name in (args.arms or [variant.name])
                and (task.judge or variant.arm.labels != "oracle")]  # fmt: skip
    weak = task.weak_views[choices[WEAK]["chosen"]]
    runs = [Run(replace(variant.named_arm(), weak=weak), variant.spec, count, rng_seed)
            for variant in variants for rng_seed in args.rng_seeds]  # fmt: skip
    make_pools(setup, runs, args.processes)
    found = perform(result, setup, runs, args.processes)
    measured = [measure(setup, run) for run in runs]
    found = [{**row, **figures} for row, figures in zip(found, measured, strict=True)]
    names = [variant.name for variant in variants]
    name = f"{task.name}_{args.ablation}"
    text = (f"\n{count} labelled images per class, {base.replicas} synthetic images of each.\n"
            + tradeoff_table(found, names))  # fmt: skip
    write(setup, args, name, text, found, choices=choices)
    if len({variant.spec for variant in variants}) == 1:  # the same images: only training differs
        plot(found, names, [count], name, args.out / f"{name}.png")
    else:
        plot_tradeoff(found, names, args.out / f"{name}.png")


def write(setup: Setup, args, name: str, text: str, runs: list[dict], **more) -> None:
    """JSON with every run, and the table that was made of it."""
    seconds = sum(run["training_seconds"] for run in runs)
    facts = {
        "task": setup.task.name, "rng_seeds": args.rng_seeds, "steps": setup.task.steps,
        "batch_size": setup.task.batch_size, "machine": machine(setup.device),
        "commit": commit(), "training_seconds": round(seconds), **more,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    head = (f"# {name}, {len(args.rng_seeds)} rng seeds, mean ± 95 % interval\n\n"
            f"{setup.task.steps} optimizer steps of batch {setup.task.batch_size} in every arm; "
            f"accuracy is averaged over classes; {facts['machine']}; commit {facts['commit']}.\n")
    print(text)
    (args.out / f"{name}.md").write_text(head + text)
    (args.out / f"{name}.json").write_text(json.dumps({**facts, "runs": runs}, indent=1) + "\n")


def export(task: Task, data: Path, folder: Path) -> None:
    """Write the training images as PNG, in class folders, for ``examples/train_backbone.py``.

    Without labels (all in one folder) unless the backbone is to be class-conditional.
    """
    train, _ = task.read(data)
    for number, (pixels, label) in enumerate(zip(train.pixels, train.labels.tolist())):
        place = folder / (f"{label:03d}" if task.class_conditional else "images")
        place.mkdir(parents=True, exist_ok=True)
        write_png(pixels, str(place / f"{number:06d}.png"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", type=Path, required=True, help="folder or file of the images")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/accuracy"))
    parser.add_argument("--state", type=Path, default=Path("build/accuracy"),
                        help="folder for pools, runs and choices")
    parser.add_argument("--backbone", help="folder of the diffusion model")
    parser.add_argument("--weights", type=Path, help="of a pretrained classifier")
    parser.add_argument("--arms", nargs="+", help="names, of an ablation's rows too; default: all")
    parser.add_argument("--shots", nargs="+", type=int, help="all of the task by default")
    parser.add_argument("--rng-seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"),
                        help="stop after so many; the same command goes on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ablation", choices=ABLATIONS)
    parser.add_argument("--choices", type=Path,
                        help="JSON of an earlier result: take its choices, tune nothing")
    parser.add_argument("--replicas", type=int,
                        help="images per labelled one in an ablation; default: the task's")
    parser.add_argument("--dry-run", action="store_true", help="measure unit costs, print a sum")
    parser.add_argument("--smoke", action="store_true", help="two classes, a few steps, to try it")
    parser.add_argument("--export", type=Path, help="write the training images here, and stop")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    task = TASKS[args.task]
    if args.export:
        return export(task, args.data, args.export)
    if args.smoke:
        task, args.backbone, args.weights = smoke(task, args)
    if not args.ablation:
        args.arms = args.arms or [arm.name for arm in arms_of(task)]
    args.shots = args.shots or [count for count, _ in task.shots]
    setup = Setup(task, args.data, args.state, args.backbone, args.weights, args.device,
                  time.time() + 60 * args.minutes)  # fmt: skip
    if args.dry_run:
        return print(estimate(setup, args, TUNED.values()))
    judge_of(setup)
    try:
        (ablation if args.ablation else study)(setup, args)
    except Stopped:
        print(f"stopped after {args.minutes:g} minutes; the same command goes on")


if __name__ == "__main__":
    main()
