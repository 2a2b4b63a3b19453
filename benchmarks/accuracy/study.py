"""The main table of the accuracy study: choose on validation, train, write down."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.accuracy.ablations import ABLATIONS
from benchmarks.accuracy.arms import CHOSEN, MAIN, REAL, WEAK, Arm, arms_of
from benchmarks.accuracy.images import measure, plot_tradeoff, tradeoff_table
from benchmarks.accuracy.pictures import draw
from benchmarks.accuracy.pools import PoolSpec
from benchmarks.accuracy.recipes import RECIPES
from benchmarks.accuracy.report import (
    comparisons,
    of_arm,
    plot,
    plot_by_number,
    sentences,
    summary,
    table,
)
from benchmarks.accuracy.runs import (
    Run,
    Setup,
    has_null_class,
    knows_classes,
    make_pool,
    perform,
    result,
)
from benchmarks.accuracy.tasks import Task
from benchmarks.common.provenance import commit, machine_and_torch

TUNING_SEEDS = (100, 101, 102)
POOL_TUNING_SEEDS = TUNING_SEEDS[:2]  # where images must be generated


@dataclass(frozen=True)
class Selection:
    """Which runs of a study are wanted, and where their results go.

    Attributes:
        out: folder for tables, plots and JSON.
        rng_seeds: one run of each arm for each.
        shots: numbers of labeled images per class; of the main table only.
        arms: names of arms, or of an ablation's rows; None: all.
        replicas: synthetic images per labeled one in an ablation; None: the task's.
        choices: JSON of an earlier result whose choices are taken, where it has any for a recipe;
            of another task those of recipes alone. None: all are made now.
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


@dataclass(frozen=True)
class Choices:
    """What was chosen on validation.

    Attributes:
        weak: the weak view's numbers.
        classical: the operation that goes on top of it.
        specs: the settings of each recipe.
        record: what each candidate reached, for the result's file.
    """

    weak: tuple[float, float]
    classical: str
    specs: dict[str, PoolSpec]
    record: dict[str, dict]

    def spec(self, arm: Arm, replicas: int) -> PoolSpec:
        """The pool of an arm."""
        if arm.recipe == "hard":
            return replace(self.specs["tuned"], kind="hard", replicas=replicas)
        if arm.recipe in RECIPES:
            return replace(self.specs[arm.recipe], replicas=replicas)
        return PoolSpec(arm.recipe or "none", replicas if arm.recipe else 0)

    def run(self, arm: Arm, spec: PoolSpec, shots: int, rng_seed: int) -> Run:
        """The run of an arm on a pool."""
        view = self.classical if arm.view == CHOSEN else arm.view
        return Run(replace(arm, weak=self.weak, view=view), spec, shots, rng_seed)


def candidates(task: Task) -> dict[str, list[PoolSpec]]:
    """Recipe -> settings to choose from on validation, at the task's first number of shots."""
    return {name: [replace(spec, replicas=task.shots[0][1]) for spec in recipe(task)]
            for name, recipe in RECIPES.items()}  # fmt: skip


def choices_of(setup: Setup, selection: Selection) -> Choices:
    """Those of an earlier result, if one is named; what it lacks is chosen now."""
    record: dict[str, dict] = {}
    if selection.choices is not None:
        found = json.loads(selection.choices.read_text())
        record = found["choices"]
        if found["task"] != setup.task.name:  # the views are the task's own
            record = {name: {**record[name], "from": found["task"]}
                      for name in RECIPES if name in record}  # fmt: skip
        if not _fits(setup.task, record):
            raise SystemExit(f"--choices must name a result that chose between today's "
                             f"candidates; {selection.choices} did not. Leave it out to choose "
                             "now.")  # fmt: skip
    recipes = {arm.recipe.replace("hard", "tuned") for arm in arms_wanted(setup, selection)}
    record = choose(setup, selection.processes, recipes, record)
    task = setup.task
    specs = {name: each[record[name]["chosen"]] for name, each in candidates(task).items()
             if name in record}  # fmt: skip
    return Choices(task.weak_views[record[WEAK]["chosen"]],
                   task.classical[record[CHOSEN]["chosen"]], specs, record)  # fmt: skip


def _fits(task: Task, record: dict[str, dict]) -> bool:
    """Whether a record chose between the candidates of today."""
    today = {name: [spec.settings.summary() for spec in specs]
             for name, specs in candidates(task).items()}  # fmt: skip
    return all([each["settings"] for each in record[name]["candidates"]] == settings
               for name, settings in today.items() if name in record)  # fmt: skip


def choose(
    setup: Setup, processes: int, recipes: set[str], known: dict[str, dict]
) -> dict[str, dict]:
    """Choose on validation: what was chosen, and what each candidate reached.

    First the weak view, then the operation on top of it, then each recipe's settings, with seed
    labels under that operation. What is known is not chosen again.
    """
    task, count = setup.task, setup.task.shots[0][0]

    def plain(**changes: object) -> list[Run]:
        return [Run(replace(Arm(WEAK), **changes), PoolSpec("none"), count, rng_seed, True)
                for rng_seed in TUNING_SEEDS]  # fmt: skip

    names = [f"flip={flip}, padding={padding}" for flip, padding in task.weak_views]
    record = dict(known)
    if WEAK not in record:
        views = [plain(weak=w) for w in task.weak_views]
        record[WEAK] = compare(setup, views, names, processes)
    weak = task.weak_views[record[WEAK]["chosen"]]
    if CHOSEN not in record:
        operations = [plain(weak=weak, view=view) for view in task.classical]
        record[CHOSEN] = compare(setup, operations, list(task.classical), processes)
    view = task.classical[record[CHOSEN]["chosen"]]
    for name, specs in candidates(task).items():
        if name not in recipes or name in record:
            continue
        arm = Arm(name, name, view=view, weak=weak)
        groups = [[Run(arm, spec, count, rng_seed, True) for rng_seed in POOL_TUNING_SEEDS]
                  for spec in specs]  # fmt: skip
        make_pools(setup, [run for runs in groups for run in runs], processes)
        settings = [spec.settings.summary() for spec in specs]
        record[name] = compare(setup, groups, settings, processes)
    return record


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


def arms_wanted(setup: Setup, selection: Selection) -> list[Arm]:
    """The arms of the table; images of no class have no label to be trained on."""
    def is_possible(arm: Arm) -> bool:
        if arm.frozen and setup.weights is None:
            return False
        return (arm.recipe != "noise" or knows_classes(setup)) and (
            arm.recipe != "label_free" or has_null_class(setup))

    return [arm for arm in arms_of(setup.task) if selection.wants(arm.name) and is_possible(arm)]


def planned(choices: Choices, setup: Setup, selection: Selection) -> list[Run]:
    """All runs of the table, the arms of one split together."""
    arms = arms_wanted(setup, selection)
    return [choices.run(arm, choices.spec(arm, replicas), count, rng_seed)
            for count, replicas in setup.task.shots if count in selection.shots
            for rng_seed in selection.rng_seeds for arm in arms]  # fmt: skip


def study(setup: Setup, selection: Selection) -> None:
    """The main table of a task."""
    task, shots = setup.task, selection.shots
    choices = choices_of(setup, selection)
    runs = planned(choices, setup, selection)
    make_pools(setup, runs, selection.processes)
    found = perform(result, setup, runs, selection.processes)
    chosen = arms_wanted(setup, selection)
    arms = [arm.name for arm in chosen]
    text = table(found, arms, shots, REAL)
    compared = comparisons(found, chosen, shots)
    notes = "".join(f"{line}\n" for row in compared for line in sentences(row))
    text += (f"\n{notes}\nChosen on {task.validation_images} validation images at "
             f"{task.shots[0][0]} per class, other rng seeds:\n")
    for name, choice in choices.record.items():
        source = f" (chosen on {choice['from']})" if "from" in choice else ""
        text += f"- {name}: {choice['candidates'][choice['chosen']]['settings']}{source}\n"
    rows = [summary(found, arm, count, REAL) for count in shots for arm in arms]
    write(setup, selection, task.name, text, found, choices=choices.record, summary=rows,
          compared=compared)  # fmt: skip
    plot(found, arms, shots, task.name, selection.out / f"{task.name}.png")
    if len(shots) > 1:
        shown = [arm for arm in (choices.classical, *MAIN) if arm in arms]
        lines = {arm: {count: arm for count in shots if of_arm(found, arm, count, "test")}
                 for arm in shown}  # fmt: skip
        plot_by_number(found, lines, "shots", selection.out / f"{task.name}_shots.png")
    for recipe in dict.fromkeys(arm.recipe for arm in chosen if arm.recipe in choices.specs):
        spec = replace(choices.specs[recipe], replicas=task.shots[0][1])
        run = Run(Arm(recipe, recipe), spec, task.shots[0][0], selection.rng_seeds[0])
        draw(setup, run, selection.out / "pictures" / f"{task.name}_{recipe}.png")


def ablation(setup: Setup, selection: Selection, name: str) -> None:
    """One ablation, at the task's first number of shots."""
    task = setup.task
    choices = choices_of(setup, selection)
    count, replicas = task.shots[0]
    rows = ABLATIONS[name](choices.specs, selection.replicas or replicas)
    variants = [variant for variant in rows
                if selection.wants(variant.name)
                and (task.judge or variant.arm.labels != "oracle")]  # fmt: skip
    runs = [choices.run(variant.named_arm(), variant.spec, count, rng_seed)
            for variant in variants for rng_seed in selection.rng_seeds]  # fmt: skip
    make_pools(setup, runs, selection.processes)
    found = perform(result, setup, runs, selection.processes)
    measured = [measure(setup, run) for run in runs]
    found = [{**row, **figures} for row, figures in zip(found, measured, strict=True)]
    names = [variant.name for variant in variants]
    title = f"{task.name}_{name}"
    text = f"\n{count} labeled images per class.\n" + tradeoff_table(found, names)
    write(setup, selection, title, text, found, choices=choices.record)
    if name == "replicas":
        lines: dict[str, dict[int, str]] = {}
        for each in names:
            method, _, number = each.rpartition(", K = ")
            lines.setdefault(method, {})[int(number)] = each
        plot_by_number(found, lines, "synthetic images per labeled one",
                       selection.out / f"{title}.png")
    elif len({variant.spec for variant in variants}) == 1:  # the same images: only training differs
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
