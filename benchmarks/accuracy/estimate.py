"""What a call of the accuracy study would cost, from a few steps of each kind."""

import time
from dataclasses import replace

import torch

from benchmarks.accuracy.arms import Arm, arms_of
from benchmarks.accuracy.pools import (
    Pool,
    PoolSpec,
    ask,
    noise_settings,
    open_backbone,
    settings_of,
)
from benchmarks.accuracy.runs import Run, Setup, images_of, is_trained, labeler_of
from benchmarks.accuracy.study import TUNED, Selection
from benchmarks.accuracy.tasks import Images, Split
from benchmarks.accuracy.training import Training, predictions
from dreamda_aug import Settings
from dreamda_aug.generation.tensors import TensorSynthesizer

STEPS, SAMPLES = 8, 32


def estimate(setup: Setup, selection: Selection) -> str:
    """Unit costs measured now, and the sum over all runs of the main table, as lines of text."""
    task, repeats = setup.task, len(selection.rng_seeds)
    images = images_of(setup, Run(arms_of(task)[0], PoolSpec("none"), task.shots[0][0], 0))
    kinds = {
        "img2img": settings_of(task, task.img2img[len(task.img2img) // 2], 0.0, 0.0),
        "noise": noise_settings(task),
        "dreamda": settings_of(task, *task.dials[len(task.dials) // 2]),
    }
    per_sample = {name: _generation(setup, images.shots, name, s) for name, s in kinds.items()}
    per_step = {arm.name: _training(setup, images, arm) for arm in arms_of(task)}
    began = time.process_time()
    predictions(Training(task, arms_of(task)[0], images, _pool(images, 1), torch.tensor([]), 0,
                         setup.weights, setup.device).model.eval(),
                images.test.pixels[:1000], setup.device)  # fmt: skip
    evaluation = (time.process_time() - began) / 1000 * len(images.test)
    samples = {count: count * task.classes * replicas for count, replicas in task.shots}
    # settings are chosen separately for seed labels, for AMST and for probe labels
    pools = {"img2img": 3, "noise": 1, "dreamda": 3}
    generation = repeats * sum(
        samples[count] * pools[name] * cost for count in selection.shots
        for name, cost in per_sample.items())  # fmt: skip
    training = repeats * len(selection.shots) * sum(
        task.steps * cost + evaluation for name, cost in per_step.items() if selection.wants(name))
    first = samples[task.shots[0][0]]
    arms = {arm.name: arm for arm in arms_of(task)}
    tuning = sum(
        settings * (first * per_sample[kind] + task.steps * sum(
            cost for name, cost in per_step.items()
            if arms[name].pool == kind and name in TUNED.values()))
        for kind, settings in (("img2img", len(task.img2img)), ("dreamda", len(task.dials))))
    total = generation + training + tuning
    lines = [f"{name}: {cost * 1000:.0f} ms per sample" for name, cost in per_sample.items()]
    lines += [f"{name}: {cost * 1000:.0f} ms per step" for name, cost in per_step.items()]
    lines += [f"test set: {evaluation:.1f} s per run ({len(arms)} arms)",
              f"tuning {tuning / 60:.0f}, generation {generation / 60:.0f}, "
              f"training {training / 60:.0f} processor minutes; "
              f"{total / 60 / selection.processes:.0f} minutes in {selection.processes} processes"]
    return "\n".join(lines)


def _generation(setup: Setup, shots: Images, name: str, settings: Settings) -> float:
    """Seconds per sample, inversion included."""
    backbone = open_backbone(setup.task, setup.backbone, setup.device)
    spec = PoolSpec("noise" if name == "noise" else "replicas", setup.task.shots[0][1], settings)
    images, requests, _ = ask(spec, shots, backbone.condition_kind == "class")
    began = time.process_time()
    TensorSynthesizer(backbone, settings).synthesize(images, requests[:SAMPLES])
    return (time.process_time() - began) / len(requests[:SAMPLES])


def _pool(images: Split, size: int) -> Pool:
    pixels = images.shots.pixels[torch.arange(size) % len(images.shots)]
    return Pool(pixels, images.shots.labels[torch.arange(size) % len(images.shots)], 0.0)


def _training(setup: Setup, images: Split, arm: Arm) -> float:
    """Seconds per optimizer step; copies stand for synthetic images."""
    count, replicas = setup.task.shots[0]
    # as many images to label per step as in a whole run
    share = max(4, count * setup.task.classes * replicas * STEPS // setup.task.steps)
    pool = _pool(images, share if arm.pool else 0)
    shorter = replace(setup.task, steps=STEPS)
    if not is_trained(arm):
        return 0.0
    training = Training(shorter, arm, images, pool, pool.seed_labels, 0, setup.weights,
                        setup.device, labeler_of(setup, arm, images))  # fmt: skip
    return training.run().seconds / STEPS
