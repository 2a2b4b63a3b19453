"""How much accuracy the choice of `dreamda_aug.evaluate` costs against the best arm.

    python -m benchmarks.accuracy xrays --data build/xrays --regret
    python -m benchmarks.accuracy.regret benchmarks/results/accuracy/regret

The first command lets `evaluate` choose on the labeled images of each draw alone. Then it trains
every way that was considered on all of these images, and measures it on the test set: one JSON
file for each draw. The second one makes the table from all such files of a folder.
"""

import argparse
import json
from functools import partial
from pathlib import Path

from benchmarks.accuracy.pools import open_model
from benchmarks.accuracy.runs import Setup, split_of
from benchmarks.common.provenance import commit, machine_and_torch
from dreamda_aug import Synthesizer
from dreamda_aug.amst import WeakView
from dreamda_aug.evaluation import evaluate
from dreamda_aug.evaluation.draw import Draw
from dreamda_aug.evaluation.protocol import PRESETS, make_makers
from dreamda_aug.evaluation.training import Trainer, small_classifier
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.method.seeding import derive_seed
from dreamda_aug.method.settings import resolve_settings
from dreamda_aug.statistics import interval

# What a user would do who does not choose.
ALWAYS = ("RandAugment", "recommended x10", "samples x10")


def measure(setup: Setup, out: Path, shots: int, rng_seed: int) -> None:
    """Choose and test in one draw; what is there already is kept."""
    task = setup.task
    path = out / "regret" / f"{task.name}-{shots}-{rng_seed}.json"
    if path.exists():
        return
    images, model = split_of(setup, shots, rng_seed), open_model(task, setup.model, setup.device)
    names = model.class_names or list(map(str, range(task.classes)))
    source = open_seed_images(images.shots.pixels, labels=images.shots.labels.tolist(),
                              class_names=list(names[: task.classes]))  # fmt: skip
    maker = Synthesizer(model, cache=setup.state / "cache").with_class_names(source.classes)
    flip = task.weak_views[0][0]
    state = setup.state / "evaluations" / path.name
    state.parent.mkdir(parents=True, exist_ok=True)
    found = evaluate(source, maker, flip=flip, image_size=task.image_size, device=setup.device,
                     rng_seed=rng_seed, out=state, progress=partial(print, flush=True))
    arms, chosen = found.ranking, found.recommended
    makers = make_makers(maker, {name: resolve_settings(name) for name in PRESETS
                                 if any(arm.preset == name for arm in arms)}, source, True)
    trainer = Trainer(
        partial(small_classifier, task.channels, task.classes), images.shots.pixels,
        images.shots.labels, task.classes, WeakView(flip, 0.06), found.settings["train_steps"],
        found.settings["train_batch_size"], found.settings["learning_rate"],
        derive_seed(rng_seed, "test"), setup.device)  # fmt: skip
    # its number: other synthetic images than the choice was made with
    draw = Draw(found.draws, trainer, source, (images.test.pixels, images.test.labels), makers,
                arms)  # fmt: skip
    record = {
        "task": task.name, "shots": shots, "rng_seed": rng_seed, "recommended": chosen.name,
        "verdict": found.verdict, "test": {arm.name: draw.run(arm).accuracy for arm in arms},
        "ranking": [arm.name for arm in arms], "seconds": found.seconds,
        "settings": found.settings, "machine": machine_and_torch(setup.device),
        "commit": commit(),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{path.name}: {chosen.name}, {100 * regret(record, chosen.name):.1f} points behind the "
          "best", flush=True)  # fmt: skip


def regret(record: dict, arm: str) -> float | None:
    """Test accuracy of the best arm minus that of another; None where it was not trained."""
    test = record["test"]
    return max(test.values()) - test[arm] if arm in test else None


def report(records: list[dict]) -> str:
    """A Markdown table: mean and largest regret of each way to choose, and the gain of ours."""
    lines = ["| study | draws | evaluate | " + " | ".join(f"always {arm}" for arm in ALWAYS)
             + " | evaluate minus RandAugment |", "|---" * (len(ALWAYS) + 4) + "|"]  # fmt: skip
    for task, shots in sorted({(each["task"], each["shots"]) for each in records}):
        mine = [each for each in records if (each["task"], each["shots"]) == (task, shots)]
        ways = [[regret(each, each["recommended"]) for each in mine],
                *([regret(each, arm) for each in mine] for arm in ALWAYS)]  # fmt: skip
        cells = ["–" if None in way else f"{100 * sum(way) / len(way):.1f} (worst "
                 f"{100 * max(way):.1f})" for way in ways]  # fmt: skip
        gain, half = interval([each["test"][each["recommended"]] - each["test"]["RandAugment"]
                               for each in mine])  # fmt: skip
        cells.append(f"{100 * gain:+.1f}" + (f" ± {100 * half:.1f}" if len(mine) > 1 else ""))
        lines.append(f"| {task}, {shots} per class | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    text = report([json.loads(path.read_text()) for path in sorted(args.folder.glob("*.json"))])
    (args.folder / "regret.md").write_text(
        "# Regret: test accuracy of the best arm minus that of the chosen one, points, mean "
        f"(worst) over draws\n\n{text}")
    print(text)
