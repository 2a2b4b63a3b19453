"""Single runs of the accuracy study, cached by everything that they depend on."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.transforms import v2

from benchmarks.accuracy import cross_validation
from benchmarks.accuracy.adapted import adapted_model
from benchmarks.accuracy.arms import Arm
from benchmarks.accuracy.classifiers import CLASSIFIERS
from benchmarks.accuracy.cross_validation import cross_validated_probe
from benchmarks.accuracy.pools import (
    Pool,
    PoolSpec,
    Stopped,
    code_digest,
    load_pool,
    open_model,
    pool_folder,
)
from benchmarks.accuracy.tasks import Images, Split, Task, read_corpus, split
from benchmarks.accuracy.training import LABELLING_CODE, TRAINING_CODE, train
from benchmarks.common.provenance import commit, machine_and_torch
from dreamda_aug.amst import Labeler, LabelPrior, SingleHeadLabeler
from dreamda_aug.calibration import judge, probe
from dreamda_aug.calibration.probe import DiffusionClassifier, model_features
from dreamda_aug.evaluation import draw
from dreamda_aug.evaluation.draw import estimate_label_prior
from dreamda_aug.evaluation.training import class_accuracy, predict
from dreamda_aug.inputs.pixels import fit_to
from dreamda_aug.models import DiffusionModel

# The judge, and the classifier of the corpus, take so many times the steps of an arm.
LONGER = 8
# Where pseudo-labels are made, their code decides a classifier's weights too.
CODE_OF_LABELS = {"amst": LABELLING_CODE, "soft": LABELLING_CODE,
                  "probe": [*LABELLING_CODE, *(Path(each.__file__)
                                               for each in (probe, cross_validation))],
                  "prior": [*LABELLING_CODE, Path(probe.__file__)]}  # fmt: skip
CODE_OF_LABEL_PRIOR = [Path(module.__file__) for module in (judge, probe, draw)]


@dataclass(frozen=True)
class Setup:
    """What all runs of one call share.

    Attributes:
        task: the task.
        data: its files.
        state: folder for pools, runs and the judge.
        model: folder of the diffusion model; None: the task's own.
        weights: of ImageNet's network, for the arms on its frozen features.
        device: where everything runs.
        deadline: nothing new is begun once ``time.time()`` has passed it.
    """

    task: Task
    data: Path
    state: Path
    model: str | None = None
    weights: Path | None = None
    device: str = "cpu"
    deadline: float = float("inf")


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        arm: how.
        spec: the pool.
        shots: labeled images per class.
        rng_seed: draws the labeled images and everything else.
        tuning: look at validation images only.
    """

    arm: Arm
    spec: PoolSpec
    shots: int
    rng_seed: int
    tuning: bool = False


@lru_cache(maxsize=1)
def _data(setup: Setup) -> tuple[Images, Images]:
    return setup.task.read(setup.data)


@lru_cache(maxsize=4)
def split_of(setup: Setup, shots: int, rng_seed: int) -> Split:
    """The images of a draw."""
    return split(setup.task, _data(setup), shots, rng_seed)


@lru_cache(maxsize=1)
def _model(setup: Setup) -> DiffusionModel:
    return open_model(setup.task, setup.model, setup.device)


def knows_classes(setup: Setup) -> bool:
    """Whether the diffusion model can be asked for a class."""
    return _model(setup).condition_kind == "class"


def has_null_class(setup: Setup) -> bool:
    """Whether the diffusion model can also be asked for none."""
    return knows_classes(setup) and _model(setup).guidable


def images_of(setup: Setup, run: Run) -> Split:
    """The images of a run."""
    return split_of(setup, run.shots, run.rng_seed)


def pool_of(setup: Setup, run: Run) -> Pool:
    """The pool of a run, made now if it is not there."""
    images, spec = images_of(setup, run), run.spec
    if spec.kind.startswith("hard"):
        images = replace(images, shots=hard_third(setup, run.shots, run.rng_seed, run.arm.weak))
        spec = replace(spec, kind="replicas" if spec.is_made else "copies",
                       replicas=3 * spec.replicas)  # fmt: skip
    model = _model(setup) if spec.is_made else None
    adapted = partial(adapted_model, run.spec.kind, images, model,
                      setup.model or setup.task.model, setup.state, run.rng_seed)
    return load_pool(setup.state, setup.task, spec, images.shots, run.rng_seed, model,
                     setup.deadline, adapted)  # fmt: skip


@lru_cache(maxsize=4)
@torch.no_grad()
def hard_third(
    setup: Setup, shots: int, rng_seed: int, weak: tuple[float, float]
) -> Images:
    """The third of a run's labeled images with the highest loss early in training.

    Source: arXiv:2505.21574, which expands hard images alone.
    """
    images, task = split_of(setup, shots, rng_seed), setup.task
    nothing = Pool(images.shots.pixels[:0], images.shots.labels[:0], 0.0)
    early = replace(task, steps=task.steps // 4)
    with torch.enable_grad():
        found = train(early, Arm("early", weak=weak), images, nothing, nothing.seed_labels,
                      rng_seed, device=setup.device).classifier  # fmt: skip
    losses = torch.cat([F.cross_entropy(found(part.to(setup.device).float() / 255).cpu(), labels,
                                        reduction="none")
                        for part, labels in zip(images.shots.pixels.split(500),
                                                images.shots.labels.split(500))])  # fmt: skip
    return images.shots[losses.argsort(descending=True)[: max(1, len(losses) // 3)].sort()[0]]


@lru_cache(maxsize=1)
def judge_of(setup: Setup) -> nn.Module | None:
    """The classifier that knows the true labels; None where the task has none."""
    task = setup.task
    if task.judge is None:
        return None
    judge = CLASSIFIERS[task.classifier](task, None).to(setup.device)
    if task.judge == "trained":
        path = _trained(setup, "judge", split_of(setup, 1, 0).rest)
    else:
        path = Path(task.judge)
    judge.load_state_dict(load_file(path))
    return judge.eval().requires_grad_(False)


def corpus_classifier(setup: Setup) -> Path:
    """Weights of the task's classifier, trained on the prior's own labeled images."""
    return _trained(setup, "corpus", read_corpus(setup.task))


def _trained(setup: Setup, name: str, images: Images) -> Path:
    """Weights of the task's classifier, trained longer, on other images than an arm has."""
    task = setup.task
    longer = replace(task, steps=LONGER * task.steps)
    path = setup.state / f"{name}-{task.name}-{task.classes}-{longer.steps}.safetensors"
    if not path.exists():
        everything = replace(split_of(setup, 1, 0), shots=images)
        nothing = Pool(images.pixels[:0], images.labels[:0], 0.0)
        arm = Arm(name, weak=task.weak_views[0])
        found = train(longer, arm, everything, nothing, nothing.seed_labels, 0,
                      device=setup.device).classifier  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(found.state_dict(), path)
    return path


def result_path(setup: Setup, run: Run) -> Path:
    """The file of a run's result: named after everything that it depends on."""
    task, images = setup.task, images_of(setup, run)
    # the candidates of choices do not change a run; pixels stand for the reader
    without = ("read", "guidances", "classical", "weak_views", "shots", "corpus")
    if run.spec.is_made:
        pool = pool_folder(setup.state, task, run.spec, images.shots, run.rng_seed,
                           _model(setup)).name  # fmt: skip
    else:
        pool = run.spec
    code = TRAINING_CODE + CODE_OF_LABELS.get(run.arm.labels, [])
    if run.arm.amst.label_prior:
        code += CODE_OF_LABEL_PRIOR
    parts = [{f.name: getattr(task, f.name) for f in fields(task) if f.name not in without},
             run.arm, pool, run.shots, run.rng_seed, run.tuning, code_digest(code),
             hashlib.sha256(images.shots.pixels.numpy().tobytes()).hexdigest(),
             run.arm.frozen and setup.weights and setup.weights.name, _judge_digest(task)]
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    slug = "".join(c if c.isalnum() else "_" for c in run.arm.name)
    name = f"{task.name}-{run.shots}-{run.rng_seed}-{slug}-{key}.json"
    return setup.state / ("tuning" if run.tuning else "runs") / name


def _judge_digest(task: Task) -> str | None:
    """Tells the weights of a task's judge from others; it says which labels are right."""
    return task.judge if task.judge in (None, "trained") else code_digest([Path(task.judge)])


def result(setup: Setup, run: Run) -> dict:
    """Train and evaluate, or read what that gave before.

    Raises:
        Stopped: the deadline has passed.
    """
    path = result_path(setup, run)
    if path.exists():
        return json.loads(path.read_text())
    images, pool = images_of(setup, run), pool_of(setup, run)
    truth = torch.full((len(pool.pixels),), -1)
    if len(truth) and (judge := judge_of(setup)) is not None:
        truth = predict(judge, pool.pixels, setup.device)
    if time.time() > setup.deadline:
        raise Stopped
    weights = setup.weights if run.arm.frozen else None
    if run.arm.pretrained:
        weights = corpus_classifier(setup)
    outcome = train(setup.task, run.arm, images, pool, truth, run.rng_seed, weights, setup.device,
                    labeler_of(setup, run.arm, images, pool),
                    label_prior_of(setup, run, images, pool))  # fmt: skip

    def accuracy(part: Images) -> float:
        return class_accuracy(outcome.classifier, part.pixels, part.labels, setup.device)

    found = {
        "task": setup.task.name, "arm": run.arm.name, "shots": run.shots,
        "rng_seed": run.rng_seed, "steps": outcome.steps,
        "pool": len(pool.pixels) + run.arm.unlabeled * len(images.unlabeled),
        "validation": accuracy(images.validation),
        "test": None if run.tuning else accuracy(images.test),
        "accepted": outcome.accepted, "labels_right": outcome.labels_right,
        "training_seconds": round(outcome.seconds, 1), "generation_seconds": round(pool.seconds, 1),
        "pool_settings": run.spec.settings and run.spec.settings.summary(),
        "machine": machine_and_torch(setup.device), "commit": commit(),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(temporary, path)
    return found


def labeler_of(setup: Setup, arm: Arm, images: Split, pool: Pool) -> Labeler | None:
    """What labels the pool in the place of AMST's heads; all its labels are accepted."""
    if arm.labels not in ("probe", "prior"):
        return None
    model, shots = _model(setup), images.shots
    resize = v2.Lambda(partial(fit_to, model=model))
    if arm.labels == "probe":
        classifier = cross_validated_probe(
            model_features(model), resize(shots.pixels.float() / 255), shots.labels,
            setup.task.classes).matched_to(resize(pool.pixels.float() / 255))
    else:
        classifier = DiffusionClassifier(model, range(setup.task.classes))
    return SingleHeadLabeler(nn.Sequential(resize, classifier), soft=True)


def label_prior_of(setup: Setup, run: Run, images: Split, pool: Pool) -> LabelPrior | None:
    """How often the class asked for came out, by a probe that never saw the seed image."""
    if not run.arm.amst.label_prior:
        return None
    if run.shots < 2:  # there is none to hold out
        nothing = pool.seed_labels[:0]
        return LabelPrior.estimate(nothing, nothing, setup.task.classes)
    shots = images.shots
    return estimate_label_prior(_model(setup), (shots.pixels, shots.labels),
                                (pool.pixels, pool.seed_labels), setup.task.classes)


def make_pool(setup: Setup, run: Run) -> float:
    """Make a run's pool; processor seconds that it took in all."""
    return pool_of(setup, run).seconds


def _guarded(job: tuple[Callable, Setup, Run]):
    torch.set_num_threads(1)
    function, setup, run = job
    try:
        return function(setup, run)
    except Stopped:
        return None


def perform(function: Callable, setup: Setup, runs: list[Run], processes: int) -> list:
    """Call ``function(setup, run)`` for all runs, in spawned processes if more than one.

    Raises:
        Stopped: the deadline has passed before all were done.
    """
    jobs = [(function, setup, run) for run in runs]
    if processes == 1 or len(jobs) < 2:
        answers = _collect(map(_guarded, jobs), runs)
    else:
        context = torch.multiprocessing.get_context("spawn")
        with context.Pool(min(processes, len(jobs))) as pool:
            answers = _collect(pool.imap(_guarded, jobs), runs)
    if None in answers:
        raise Stopped
    return answers


def _collect(answers: Iterable, runs: list[Run]) -> list:
    """All answers, with a line printed for each."""
    found = []
    for run, answer in zip(runs, answers, strict=True):
        found.append(answer)
        if answer is None:
            outcome = "not begun, the minutes are over"
        elif isinstance(answer, dict):
            outcome = f"{run.arm.name} {answer['validation' if run.tuning else 'test']:.3f}"
        else:
            outcome = run.spec.kind
        print(f"[{len(found)}/{len(runs)}] {run.shots} per class, rng seed {run.rng_seed}: "
              f"{outcome}", flush=True)  # fmt: skip
    return found
