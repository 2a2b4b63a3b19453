"""The main table and the ablations of the accuracy study: choose, train, write down."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.accuracy.ablations import ABLATIONS
from benchmarks.accuracy.arms import Arm, arms_of
from benchmarks.accuracy.images import measure, plot_tradeoff, tradeoff_table
from benchmarks.accuracy.pools import PoolSpec, noise_settings, settings_of
from benchmarks.accuracy.report import comparisons, plot, sentences, summary, table
from benchmarks.accuracy.runs import Run, Setup, make_pool, perform, result
from benchmarks.accuracy.tasks import Task
from benchmarks.common.provenance import commit, machine_and_torch

TUNING_SEEDS = (100, 101, 102)  # the first alone where images must be generated
BASELINE = "real only"
WEAK, AMST, PROBE = "flip + crop", "DreamDA + AMST", "DreamDA, probe labels"
# Our arms -> the same images with true labels.
CEILINGS = {AMST: "DreamDA, oracle labels", PROBE: "DreamDA, oracle labels on RandAugment"}
# Kind of images and of their labels -> the arm with which their settings are chosen.
TUNED = {
    ("img2img", "seed"): "img2img, seed labels",
    ("img2img", "amst"): "img2img + AMST",
    ("img2img", "probe"): "img2img, probe labels",
    ("dreamda", "seed"): "DreamDA, seed labels",
    ("dreamda", "amst"): AMST,
    ("dreamda", "probe"): PROBE,
}


@dataclass(frozen=True)
class Selection:
    """Which runs of a study are wanted, and where their results go.

    Attributes:
        out: folder for tables, plots and JSON.
        rng_seeds: one run of each arm for each.
        shots: numbers of labelled images per class; of the main table only.
        arms: names of arms, or of an ablation's rows; None: all.
        replicas: synthetic images per labelled one in an ablation; None: the task's.
        choices: JSON of an earlier result whose choices are taken; None: they are made now.
        processes: training runs beside each other.
    """

    out: Path
    rng_seeds: tuple[int, ...]
    shots: tuple[int, ...]
    arms: tuple[str, ...] | None = None
    replicas: int | None = None
    choices: Path | None = None
    processes: int = 1

    def wants(self, arm: str) -> bool:
        """Whether an arm of this name is wanted."""
        return self.arms is None or arm in self.arms


def candidates(task: Task) -> dict[str, list[PoolSpec]]:
    """Arm name -> pools to choose from on validation, at the smallest number of shots."""
    replicas = task.shots[0][1]
    img2img = [PoolSpec("replicas", replicas, settings_of(task, strength, 0.0, 0.0))
               for strength in task.img2img]  # fmt: skip
    dials = [PoolSpec("replicas", replicas, settings_of(task, *d)) for d in task.dials]
    return {name: img2img if kind == "img2img" else dials for (kind, _), name in TUNED.items()}


def choices_of(setup: Setup, selection: Selection) -> dict[str, dict]:
    """Those of an earlier result, if one is named; otherwise made now."""
    if selection.choices is None:
        return choose(setup, selection.processes)
    found = json.loads(selection.choices.read_text())
    candidate = {name: [spec.settings.summary() for spec in specs]
                 for name, specs in candidates(setup.task).items()}  # fmt: skip
    known = {name: [each["settings"] for each in choice["candidates"]]
             for name, choice in found["choices"].items() if name != WEAK}  # fmt: skip
    if found["task"] != setup.task.name or known != candidate:
        raise SystemExit(f"--choices must name a result of {setup.task.name} that chose between "
                         f"today's candidates; {selection.choices} did not. Leave it out to "
                         "choose now.")  # fmt: skip
    return found["choices"]


def choose(setup: Setup, processes: int) -> dict[str, dict]:
    """Choose on validation: arm name -> what was chosen, and what each candidate reached."""
    task, count = setup.task, setup.task.shots[0][0]
    arms = {arm.name: arm for arm in arms_of(task)}
    views = [[Run(replace(arms[WEAK], weak=weak), PoolSpec("none"), count, rng_seed, True)
              for rng_seed in TUNING_SEEDS] for weak in task.weak_views]  # fmt: skip
    names = [f"flip={flip}, padding={padding}" for flip, padding in task.weak_views]
    choices = {WEAK: compare(setup, views, names, processes)}
    weak = task.weak_views[choices[WEAK]["chosen"]]
    wanted = {name: [[Run(replace(arms[name], weak=weak), spec, count, TUNING_SEEDS[0], True)]
                     for spec in specs]
              for name, specs in candidates(task).items()}  # fmt: skip
    make_pools(setup, [run for runs in wanted.values() for run, in runs], processes)
    for name, runs in wanted.items():
        settings = [run.spec.settings.summary() for run, in runs]
        choices[name] = compare(setup, runs, settings, processes)
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


def planned(task: Task, choices: dict[str, dict], selection: Selection) -> list[Run]:
    """All runs of the table, the arms of one split together."""
    weak = task.weak_views[choices[WEAK]["chosen"]]
    return [Run(replace(arm, weak=weak), spec_of(task, arm, replicas, choices), count,
                rng_seed)
            for count, replicas in task.shots if count in selection.shots
            for rng_seed in selection.rng_seeds
            for arm in arms_of(task) if selection.wants(arm.name)]  # fmt: skip


def study(setup: Setup, selection: Selection) -> None:
    """The main table of a task."""
    task, shots = setup.task, selection.shots
    choices = choices_of(setup, selection)
    runs = planned(task, choices, selection)
    make_pools(setup, runs, selection.processes)
    found = perform(result, setup, runs, selection.processes)
    chosen = [arm for arm in arms_of(task) if selection.wants(arm.name)]
    arms = [arm.name for arm in chosen]
    text = table(found, arms, shots, BASELINE)
    compared = comparisons(found, chosen, shots, BASELINE, CEILINGS)
    notes = "".join(f"{line}\n" for row in compared for line in sentences(row, BASELINE))
    text += (f"\n{notes}\nChosen on {task.validation_images} validation images at "
             f"{task.shots[0][0]} per class, other rng seeds:\n")
    for name, choice in choices.items():
        text += f"- {name}: {choice['candidates'][choice['chosen']]['settings']}\n"
    rows = [summary(found, arm, count, BASELINE) for count in shots for arm in arms]
    write(setup, selection, task.name, text, found, choices=choices, summary=rows,
          compared=compared)  # fmt: skip
    plot(found, arms, shots, task.name, selection.out / f"{task.name}.png")


def ablation(setup: Setup, selection: Selection, name: str) -> None:
    """One ablation, at the smallest number of shots."""
    task = setup.task
    choices = choices_of(setup, selection)
    count, replicas = task.shots[0]
    arm = next(arm for arm in arms_of(task) if arm.name == AMST)
    base = spec_of(task, arm, selection.replicas or replicas, choices)
    variants = [variant for variant in ABLATIONS[name](base)
                if selection.wants(variant.name)
                and (task.judge or variant.arm.labels != "oracle")]  # fmt: skip
    weak = task.weak_views[choices[WEAK]["chosen"]]
    runs = [Run(replace(variant.named_arm(), weak=weak), variant.spec, count, rng_seed)
            for variant in variants for rng_seed in selection.rng_seeds]  # fmt: skip
    make_pools(setup, runs, selection.processes)
    found = perform(result, setup, runs, selection.processes)
    measured = [measure(setup, run) for run in runs]
    found = [{**row, **figures} for row, figures in zip(found, measured, strict=True)]
    names = [variant.name for variant in variants]
    title = f"{task.name}_{name}"
    text = (f"\n{count} labelled images per class, {base.replicas} synthetic images of each.\n"
            + tradeoff_table(found, names))  # fmt: skip
    write(setup, selection, title, text, found, choices=choices)
    if len({variant.spec for variant in variants}) == 1:  # the same images: only training differs
        plot(found, names, [count], title, selection.out / f"{title}.png")
    else:
        plot_tradeoff(found, names, selection.out / f"{title}.png")


def write(setup: Setup, selection: Selection, name: str, text: str, runs: list[dict],
          **more) -> None:  # fmt: skip
    """JSON with every run, and the table that was made of it."""
    seconds = sum(run["training_seconds"] for run in runs)
    facts = {
        "task": setup.task.name, "rng_seeds": selection.rng_seeds, "steps": setup.task.steps,
        "batch_size": setup.task.batch_size, "machine": machine_and_torch(setup.device),
        "commit": commit(), "training_seconds": round(seconds), **more,
    }  # fmt: skip
    selection.out.mkdir(parents=True, exist_ok=True)
    head = (f"# {name}, {len(selection.rng_seeds)} rng seeds, mean ± 95 % interval\n\n"
            f"{setup.task.steps} optimizer steps of batch {setup.task.batch_size} in every arm; "
            f"accuracy is averaged over classes; {facts['machine']}; commit {facts['commit']}.\n")
    print(text)
    (selection.out / f"{name}.md").write_text(head + text)
    (selection.out / f"{name}.json").write_text(
        json.dumps({**facts, "runs": runs}, indent=1) + "\n")
