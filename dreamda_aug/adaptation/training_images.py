"""The images that a model is trained on, the noise added to them, and the loss of held-out ones."""

import hashlib
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dreamda_aug.inputs.listing import UNREADABLE
from dreamda_aug.inputs.pixels import fit_to
from dreamda_aug.inputs.seed_images import SeedImages
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.method.seeding import derive_seed
from dreamda_aug.models import DiffusionModel

logger = logging.getLogger(__name__)

# With fewer, none can be held out that says anything.
_LEAST_IMAGES = 4
_LEAST_HELD_OUT, MOST_HELD_OUT = 2, 64
# Fewer cannot show that anything helped; see `best_gain`.
_ENOUGH_HELD_OUT = 5
_ENCODED_AT_ONCE = 16
# About how many denoiser rows a measurement takes, whatever the number of images, and how many of
# them at once: without gradients they take far less memory than in training.
_MEASURED_ROWS, _MEASURED_AT_ONCE = 256, 32


@dataclass(frozen=True)
class TrainingImages:
    """Encoded images."""

    x_0: Tensor  # those to train on, (N, C, H, W) float32, on the CPU
    labels: Tensor  # theirs, (N,) int64; -1 is none
    held_out: Tensor  # those to measure on, (M, C, H, W)
    held_out_labels: Tensor  # theirs, (M,) int64
    classes: list[str]  # names of the classes, in label order; empty without labels
    left_out: list[str]  # names of the images that could not be read
    digest: str  # SHA-256 in hexadecimal of all pixels and labels, in order


def read_images(
    images: SeedImages, model: DiffusionModel, held_out: float, rng_seed: int, *,
    budget: int | None = None, most: int = MOST_HELD_OUT,
) -> TrainingImages:
    """Read and encode images, and hold some out; a warning names those that cannot be read.

    Args:
        images: the images.
        model: encodes them.
        held_out: share of the images to measure on, in [0, 0.5].
        rng_seed: another one holds out others.
        budget: how many images training can see at most, or None for all; more are not read.
        most: images to hold out at most.

    Raises:
        ValueError: too few images are left.
    """
    for problem in images.problems:
        logger.warning("%s", problem)
    generator = torch.Generator().manual_seed(derive_seed(rng_seed, "order"))
    order = torch.randperm(len(images), generator=generator)
    if budget is not None:
        order = order[: budget + (most if held_out else 0)]
    classes = images.labels or [-1] * len(images)
    digest = hashlib.sha256()
    latents, labels, left_out = [], [], []
    for part in order.split(_ENCODED_AT_ONCE):
        batch: list[Tensor] = []
        for index in part.tolist():
            try:
                pixels = images.open(index).pixels
            except UNREADABLE as error:
                left_out.append(f"{images.paths[index]} ({type(error).__name__})")
                continue
            batch.append(fit_to(pixels.values, model))
            digest.update(f"{pixels.digests[0]}{classes[index]}".encode())
            labels.append(classes[index])
        if batch:
            latents.append(model.encode(torch.cat(batch)).cpu())
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        warnings.warn(f"{len(left_out)} images could not be read and were left out: "
                      f"{'; '.join(left_out[:3])}{more}", stacklevel=4)
    if not labels:
        raise ValueError("the source holds no image that can be read.")
    x_0, numbers = torch.cat(latents), torch.tensor(labels)
    trained, measured = split(numbers, held_out, most)
    return TrainingImages(x_0[trained], numbers[trained], x_0[measured], numbers[measured],
                          images.classes, left_out, digest.hexdigest())


def split(labels: Tensor, held_out: float, most: int = MOST_HELD_OUT) -> tuple[Tensor, Tensor]:
    """Rows to train on, and rows to hold out: the same share of each class in ``labels``, (N,).

    At least one image of each class is trained on.

    Raises:
        ValueError: too few images to hold any out.
    """
    count = len(labels)
    if not held_out:
        return torch.arange(count), torch.arange(0)
    members: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        members.setdefault(label, []).append(row)
    spare = count - len(members)
    if count < _LEAST_IMAGES or spare < _LEAST_HELD_OUT:
        raise ValueError(
            f"source must hold at least {_LEAST_IMAGES} images, and {_LEAST_HELD_OUT} more images "
            "than classes, so that some can be held out to measure on, got "
            f"{count} in {len(members)} classes; `adapt` can train without measuring: "
            "early_stopping=False, train_steps=100 (--no-early-stopping --train-steps 100).")
    least = min(_ENOUGH_HELD_OUT, count // 2)
    wanted = min(max(least, round(held_out * count)), most, spare)
    # one after the other, of the class that has given the smallest share of its own so far
    turns = sorted((number / len(rows), label, row) for label, rows in members.items()
                   for number, row in enumerate(rows[:-1]))
    is_measured = torch.zeros(count, dtype=torch.bool)
    is_measured[[row for *_, row in turns[:wanted]]] = True
    return (~is_measured).nonzero().flatten(), is_measured.nonzero().flatten()


def noise_levels(model: DiffusionModel) -> NoiseSchedule:
    """The noise levels that are trained: every second one of the model's scheduler."""
    count = int(model.pipeline.scheduler.config.get("num_train_timesteps", 1000))
    # without the noisiest one, at which some schedules leave no signal to predict noise from
    return model.schedule(max(1, count // 2), 1 - 1 / max(count, 2))


def spread_levels(count: int, levels: int, generator: torch.Generator) -> Tensor:
    """Random noise levels, (count,) int64, one from each of ``count`` equal shares of them all."""
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    chosen = (places * levels).long().clamp(max=levels - 1)
    return chosen[torch.randperm(count, generator=generator)]


class Noised(NamedTuple):
    """Rows of a training batch."""

    x_t: Tensor  # what the denoiser is called with, (B, C, H, W)
    t: Tensor  # its time input, (B,)
    target: Tensor  # what it should answer, (B, C, H, W)


def add_noise(schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, levels: Tensor) -> Noised:
    """Noisy rows and the output that is right for them, on the device of the schedule.

    Args:
        schedule: the noise levels.
        x_0: clean latents, (B, C, H, W).
        eps: the noise, same shape.
        levels: number of each row's level, (B,) int64.

    Source: the inverse of `NoiseSchedule.predictions`, which names its sources.
    """
    x_0, eps, levels = (each.to(schedule.timesteps.device) for each in (x_0, eps, levels))
    signal = schedule.signal[levels].view(-1, 1, 1, 1)
    noise = schedule.noise[levels].view(-1, 1, 1, 1)
    x_t, t = signal * x_0 + noise * eps, schedule.timesteps[levels]
    kind, sigma_data = schedule.prediction_type, schedule.sigma_data
    if kind == "edm":
        power = noise**2 + sigma_data**2
        target = (x_0 - sigma_data**2 / power * x_t) * power.sqrt() / (noise * sigma_data)
        return Noised(x_t / power.sqrt(), t, target)
    return Noised(x_t, t, {"epsilon": eps, "sample": x_0, "flow": eps - x_0,
                           "v_prediction": signal * eps - noise * x_0}[kind])


@torch.no_grad()
def held_out_losses(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor], x_0: Tensor, labels: Tensor,
    schedule: NoiseSchedule, rng_seed: int, batch_size: int = _MEASURED_AT_ONCE,
) -> Tensor:
    """The loss of each held-out image, (M,) float64, on the CPU, always with the same noise.

    Args:
        denoise: maps x_t, t and labels to the denoiser's output.
        x_0: clean latents, (M, C, H, W).
        labels: (M,) int64; -1 is none.
        schedule: the noise levels.
        rng_seed: the noise of an image depends on this and its number alone.
        batch_size: rows that ``denoise`` is called with.
    """
    draws = min(32, max(4, _MEASURED_ROWS // len(x_0)))
    drawn, chosen = [], []
    for number in range(len(x_0)):
        generator = torch.Generator().manual_seed(derive_seed(rng_seed, "held-out", number))
        drawn.append(torch.randn(draws, *x_0.shape[1:], generator=generator))
        chosen.append(spread_levels(draws, len(schedule), generator))
    eps, levels = torch.cat(drawn), torch.cat(chosen)
    found = []
    for rows in torch.arange(len(eps)).split(batch_size):
        noised = add_noise(schedule, x_0[rows // draws], eps[rows], levels[rows])
        output = denoise(noised.x_t, noised.t, labels[rows // draws])
        found.append((output - noised.target).square().flatten(1).mean(1).cpu().double())
    return torch.cat(found).view(-1, draws).mean(1)
