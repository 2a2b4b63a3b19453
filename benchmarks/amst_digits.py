"""AMST on scikit-learn's digits: does it learn from synthetic images with wrong seed labels?

    python benchmarks/amst_digits.py                # main table, five rng seeds, two processes
    python benchmarks/amst_digits.py --ablations    # the parts of AMST, one at a time
    python benchmarks/amst_digits.py --validation   # what choices were made on: never the test set

A small diffusion model is trained on 1,000 digits without their labels. Each run draws three
labelled images per class from these 1,000, makes ten synthetic images of each, and trains the
same classifier for the same number of steps; arms differ in how the synthetic images are
labelled. The test set are the other 797 digits, looked at once, with the last weights.

*True* labels of synthetic images are those of a support vector machine trained on all 1,000
labelled digits: the ceiling, unreachable in practice. Generator settings, network, views,
learning rate and batch ratio were chosen with --validation: other rng seeds, and the training
digits that are not among the labelled ones in place of the test set.
"""

import argparse
import copy
import json
import multiprocessing
import os
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from accuracy_arms import AMST_PARTS
from accuracy_report import interval
from accuracy_runs import commit, machine
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from dreamda_aug import Generator
from dreamda_aug.amst import (
    AMSTWrapper,
    CollapseWarning,
    PseudoLabels,
    SeedLabeler,
    SelfTraining,
    SingleHeadLabeler,
    WeakView,
)
from dreamda_aug.generator import Request

RESULTS = Path(__file__).parent / "results"
CLASSES, PER_CLASS, REPLICAS = 10, 3, 10
STEPS, ROUNDS = 200, 3  # every arm takes STEPS * (1 + ROUNDS) optimizer steps
GENERATION = {"steps": 50, "strength": 0.44, "adherence": 0.0, "noise_scale": 1.0}
WEAK = WeakView(flip=0.0)  # a mirrored digit is no digit


def strong_view(images: Tensor) -> Tensor:
    """Rotated, sheared, scaled and shifted, each image by itself.

    `StrongView`'s colour operations and whole-pixel shifts leave little of 8×8 pixels.
    """
    count = len(images)
    angle, shear, scale, right, down = (
        largest * (2 * torch.rand(count) - 1) for largest in (0.35, 0.2, 0.15, 0.24, 0.24)
    )
    cos, sin, scale = angle.cos(), angle.sin(), 1 + scale
    rows = [torch.stack([scale * cos, shear - scale * sin, right], 1),
            torch.stack([scale * sin, scale * cos, down], 1)]  # fmt: skip
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


class Task:
    """The data of one run.

    Args:
        rng_seed: draws the labelled images.
        folder: where the backbone lies and synthetic images are kept.
        validation: evaluate on the unused training digits in place of the test set.
    """

    def __init__(self, rng_seed: int, folder: Path, validation: bool) -> None:
        images, labels, train, test = digits()
        generator = torch.Generator().manual_seed(rng_seed)
        order = train[torch.randperm(len(train), generator=generator)]
        few = torch.cat([order[labels[order] == c][:PER_CLASS] for c in range(CLASSES)])
        held_out = order[~torch.isin(order, few)] if validation else test
        self.rng_seed = rng_seed
        self.real, self.targets = images[few], labels[few]
        self.seed_labels = self.targets.repeat_interleave(REPLICAS)
        self.synthetic = make_synthetic(self.real, rng_seed, folder)
        judge = SVC(C=10).fit(images[train].flatten(1).numpy(), labels[train].numpy())
        self.truth = torch.tensor(judge.predict(self.synthetic.flatten(1).numpy()))
        self.held_out, self.held_out_labels = images[held_out], labels[held_out]


class TrueLabeler:
    """Labels every image as the judge does."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def label(self, images: Tensor, seed_labels: Tensor | None = None) -> PseudoLabels:
        # images come straight from the task, so each can be looked up.
        same = (images.flatten(1)[:, None] == self.task.synthetic.flatten(1)[None]).all(2)
        ones = torch.ones(len(images))
        return PseudoLabels(self.task.truth[same.int().argmax(1)], ones, ones, ones > 0)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (1797, 1, 8, 8) in [0, 1], labels, and indices of 1,000 training and 797 test."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images, torch.tensor(data.target), order[:1000], order[1000:]


def train_backbone(folder: Path, steps: int = 1500) -> None:
    """An unconditional pixel diffusion model of the training digits, saved into ``folder``."""
    torch.manual_seed(0)
    images, _, train, _ = digits()
    images = images[train] * 2 - 1
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        block_out_channels=(24, 48), norm_num_groups=8, attention_head_dim=16,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    average = copy.deepcopy(unet).requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.05)
    for step in range(steps):
        batch = images[torch.randint(len(images), (64,))]
        noise, t = torch.randn_like(batch), torch.randint(1000, (64,))
        loss = F.mse_loss(unet(scheduler.add_noise(batch, noise, t), t).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        decay = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, now in zip(average.parameters(), unet.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)
    DDPMPipeline(average, scheduler).save_pretrained(folder / "backbone")


def make_synthetic(real: Tensor, rng_seed: int, folder: Path) -> Tensor:
    """``REPLICAS`` synthetic images of each, (len(real) * REPLICAS, 1, 8, 8), kept on disk."""
    path = folder / f"synthetic-{rng_seed}-{hash_of(GENERATION)}.pt"
    if not path.exists():
        generator = Generator(
            str(folder / "backbone"), "fast", batch_size=len(real) * REPLICAS, rng_seed=rng_seed,
            **GENERATION,
        )  # fmt: skip
        wanted = [Request(i, replica=k) for i in range(len(real)) for k in range(REPLICAS)]
        torch.save(generator.augment(real, wanted).cpu(), path)
    return torch.load(path)


def hash_of(settings: dict) -> str:
    return "-".join(f"{name}{value}" for name, value in sorted(settings.items()))


def small_cnn() -> nn.Module:
    """GroupNorm, since batch statistics of mixed weak and strong views misled pseudo-labels.

    Nothing is pooled before the last layer: with three images per class, place tells digits apart.
    """

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU()]

    return nn.Sequential(
        *block(1, 32), *block(32, 32), nn.MaxPool2d(2), *block(32, 64),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(1024, CLASSES),
    )  # fmt: skip


def self_training(task: Task, wrapper_options: dict, options: dict) -> SelfTraining:
    """The classifier, freshly initialised, with what every arm has in common."""
    torch.manual_seed(task.rng_seed)
    wrapper = AMSTWrapper(small_cnn(), weak=WEAK, strong=strong_view, **wrapper_options)
    optimizer = torch.optim.AdamW(wrapper.parameter_groups(2e-3), weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, STEPS)
    defaults = {"pretraining_epochs": 1, "epochs": ROUNDS, "ratio": (1, 2, 0.25), "restart": True}
    return SelfTraining(
        wrapper,
        TensorDataset(task.real, task.targets),
        TensorDataset(task.synthetic, task.seed_labels),
        optimizer,
        scheduler=scheduler,
        batch_size=64,
        steps_per_epoch=STEPS,
        truth=task.truth,
        rng_seed=task.rng_seed,
        **defaults | options,
    )


def supervised(training: SelfTraining, steps: int) -> None:
    """Train the main head on the real images alone."""
    real, targets = training.data.labelled.tensors
    training.wrapper.train()
    for _ in range(steps):
        rows = torch.randint(len(real), (64,))
        training.optimizer.zero_grad()
        training.wrapper.losses(real[rows], targets[rows]).total.backward()
        training.optimizer.step()
        training.scheduler.step()


# Arms other than AMST train the main head alone, without the consistency term.
PLAIN = {"auxiliary_weight": 0.0, "consistency_weight": 0.0}


def run_arm(task: Task, arm: str) -> SelfTraining:
    """Train one arm to its end."""
    if arm in AMST_PARTS:
        training = self_training(task, *AMST_PARTS[arm])
    elif arm == "real only":
        training = self_training(task, PLAIN, {"epochs": 0, "pretraining_epochs": 0})
        supervised(training, STEPS * (1 + ROUNDS))
    elif arm in ("seed label", "true label"):
        labeler = SeedLabeler() if arm == "seed label" else TrueLabeler(task)
        training = self_training(
            task, PLAIN,
            {"pretraining_epochs": 0, "epochs": 1 + ROUNDS, "labeler": labeler, "restart": False},
        )  # fmt: skip
    else:
        training = self_training(task, PLAIN, {"pretraining_epochs": 0})
        training.labeler = SingleHeadLabeler(training.wrapper, soft=arm == "soft pseudo-label")
        supervised(training, STEPS)
    training.run()
    return training


ARMS = ("real only", "seed label", "single-head pseudo-label", "soft pseudo-label", "AMST",
        "true label")  # fmt: skip


def run_seed(job: tuple[int, Path, bool, tuple[str, ...]]) -> dict[str, dict[str, float]]:
    """All arms with one rng seed."""
    rng_seed, folder, validation, arms = job
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", CollapseWarning)
    task = Task(rng_seed, folder, validation)
    results = {"seed labels right": (task.truth == task.seed_labels).float().mean().item()}
    for arm in arms:
        start = time.process_time()
        training = run_arm(task, arm)
        classifier = training.wrapper.to_classifier().eval()
        with torch.no_grad():
            right = classifier(task.held_out).argmax(1) == task.held_out_labels
        report = training.reports[-1] if training.reports else None
        results[arm] = {
            "accuracy": right.float().mean().item(),
            "accepted": report.accepted_share if report else None,
            "labels right": report.accuracy if report else None,
            "CPU seconds": time.process_time() - start,
        }
    return results


def table(runs: list[dict], arms: tuple[str, ...]) -> str:
    lines = ["| labels of the synthetic images | accuracy | accepted | of these right | CPU s |",
             "|---|---|---|---|---|"]  # fmt: skip
    for arm in arms:
        cells = []
        for name, form in (("accuracy", "{:.3f} ± {:.3f}"), ("accepted", "{:.0%}"),
                           ("labels right", "{:.1%}"), ("CPU seconds", "{:.0f}")):  # fmt: skip
            values = [run[arm][name] for run in runs if run[arm][name] is not None]
            cells.append(form.format(*interval(values)) if values else "–")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--seeds", type=int, default=5, help="number of rng seeds")
    parser.add_argument("--arms", nargs="+", help="some arms only; nothing is saved then")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/amst_digits"),
                        help="where backbone and synthetic images are kept")  # fmt: skip
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    start = time.time()
    if not (args.folder / "backbone").exists():
        train_backbone(args.folder)
    trained = time.time() - start
    arms = tuple(args.arms or (AMST_PARTS if args.ablations else ARMS))
    first = 100 if args.validation else 0
    jobs = [(first + i, args.folder, args.validation, arms) for i in range(args.seeds)]
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        runs = pool.map(run_seed, jobs, chunksize=1)
    seed_right = interval([run["seed labels right"] for run in runs])
    notes = {
        "rng_seeds": [job[0] for job in jobs],
        "held_out": "970 unused training digits" if args.validation else "797 test digits",
        "seed_labels_right": seed_right[0],
        "generation": GENERATION,
        "backbone_seconds": round(trained),
        "total_seconds": round(time.time() - start),
        "machine": machine("cpu"),
        "commit": commit(),
    }
    text = (
        f"# AMST on digits, {len(jobs)} rng seeds, mean ± 95 % interval\n\n"
        f"Held out: {notes['held_out']}. Seed labels right: {seed_right[0]:.1%} ± "
        f"{seed_right[1]:.1%}.\n\n{table(runs, arms)}\n\n"
        f"{notes['total_seconds']} s in {args.processes} processes ({notes['backbone_seconds']} s "
        f"of them for the backbone) on {notes['machine']}; commit {notes['commit']}.\n"
    )
    print(text)
    if args.arms is None:
        name = "amst_digits" + "_ablations" * args.ablations + "_validation" * args.validation
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text)
        (RESULTS / f"{name}.json").write_text(json.dumps({**notes, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
