"""The training loop of `adapt` and `train`: the weights with the lowest held-out loss are kept."""

import importlib
import logging
import math
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dreamda_aug.adaptation.training_images import (
    Noised,
    TrainingImages,
    add_noise,
    held_out_losses,
    noise_levels,
    spread_levels,
)
from dreamda_aug.adaptation.training_state import (
    Progress,
    copied,
    load_checkpoint,
    restore,
    save_checkpoint,
)
from dreamda_aug.errors import AdaptationError
from dreamda_aug.files import format_bytes, remove_temporaries
from dreamda_aug.method.seeding import derive_seed, seeded
from dreamda_aug.models.conditioning import Condition
from dreamda_aug.models.unet import UNetModel

logger = logging.getLogger(__name__)

_MAX_GRADIENT_NORM = 1.0
_SAVE_SECONDS = 120.0
_BAR = "{percentage:3.0f}%|{bar:20}| {desc}"


@dataclass(frozen=True)
class LoopSettings:
    """How the loop trains; what `AdaptationSettings` has too is described there.

    Attributes:
        minutes: time at most, of all runs together; infinite: no limit.
        warm_up: steps in which the learning rate rises.
        cooldown: share of the steps (or minutes) at the end in which it falls to 0.
        weight_decay: AdamW's.
        flip: probability that an image is mirrored.
    """

    train_steps: int
    learning_rate: float
    batch_size: int
    minutes: float = math.inf
    warm_up: int = 20
    cooldown: float = 0.0
    weight_decay: float = 0.0
    accumulate: int = 1
    label_dropout: float = 0.1
    flip: float = 0.0
    evaluate_every: int = 25
    patience: int = 5
    rng_seed: int = 0


class Trainee(Protocol):
    """A denoiser in training, which may differ from the one that is measured and kept."""

    model: UNetModel  # the one that is measured and kept
    parameters: dict[str, nn.Parameter]  # what is trained, by name
    state: dict[str, Tensor]  # the tensors that training changes, these included
    kept: dict[str, Tensor]  # the tensors of ``model`` that it changes
    conditions: list[Condition]  # of each class, in label order, and at the end None

    def losses(self, noised: Noised, condition: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The mean squared error of a batch, and what is minimized."""

    def after_step(self) -> None:
        """Called after each step of the optimizer."""


def open_processes(*needed: str) -> Any:
    """accelerate's view of the processes; among several, it chooses this one's device.

    Raises:
        ImportError: accelerate, or one of the libraries ``needed`` beside it, is not installed.
    """
    try:
        from accelerate import PartialState

        for name in needed:
            importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            "training needs extra packages: pip install 'dreamda_aug[adapt]'.") from error
    return PartialState(cpu=not torch.accelerator.is_available())


class TrainingLoop:
    """Trains one denoiser; resumes from the checkpoint in its folder.

    Args:
        trainee: what is trained.
        images: the images; nothing is measured where none are held out.
        settings: how.
        processes: what `open_processes` returned.
        folder: where the checkpoint lies.
        identity: what must be the same for training to resume.
        shows: log what training will take before its first step; then show time left and memory,
            as a bar on a terminal, else as lines in the log.
    """

    def __init__(
        self, trainee: Trainee, images: TrainingImages, settings: LoopSettings, processes: Any,
        folder: Path, identity: dict[str, Any], shows: bool,
    ):
        self.trainee, self.images, self.settings = trainee, images, settings
        self.processes, self.folder, self.identity = processes, folder, identity
        self.device, self.schedule = trainee.model.device, noise_levels(trainee.model)
        self.shows = shows and processes.is_main_process
        self.parameters = list(trainee.parameters.values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, settings.learning_rate, weight_decay=settings.weight_decay)
        # small gradients are lost in float16 activations, unless they are scaled
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=trainee.model.dtype == torch.float16)
        self.progress, self.best = Progress(), copied(trainee.kept)

    def run(self) -> Progress:
        """Train to the end; the model then has the weights of the best step.

        Returns:
            What was measured.

        Raises:
            AdaptationError: the loss is NaN; or the folder holds another training.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(self.folder)
        self._resume()
        progress, settings = self.progress, self.settings
        saved = time.monotonic()
        begun = saved - progress.seconds
        if not progress.history:
            self._evaluate()
        if self.shows:
            logger.warning("%s", self._state() if progress.step else self._expectation(
                time.monotonic() - begun))
        with tqdm(total=1.0, bar_format=_BAR, disable=None if self.shows else True) as bar:
            while (self._share_done() < 1
                   and len(progress.history) - progress.best <= settings.patience):
                progress.losses.append(self._step(progress.step))
                progress.step += 1
                seconds = torch.tensor(time.monotonic() - begun, dtype=torch.float64)
                progress.seconds = self._agreed(seconds).item()
                measures = progress.step % settings.evaluate_every == 0 or self._share_done() >= 1
                if measures:
                    self._evaluate()
                saves = measures or time.monotonic() - saved > _SAVE_SECONDS
                if saves:
                    self._save()
                    saved = time.monotonic()
                if not bar.disable:
                    bar.set_description_str(self._state(), refresh=False)
                    bar.update(min(1.0, self._share_done()) - bar.n)
                elif self.shows and saves:
                    logger.warning("%s", self._state())
        if progress.measured:
            restore(self.trainee.kept, self.best)
        return progress

    def _share_done(self) -> float:
        progress, settings = self.progress, self.settings
        return max(progress.step / settings.train_steps, progress.seconds / 60 / settings.minutes)

    def _state(self) -> str:
        """How far training is, for people."""
        progress = self.progress
        left = progress.seconds * (1 / max(self._share_done(), 1e-9) - 1)
        loss = ""
        if progress.history:
            step, _, lowest = progress.history[progress.best]
            loss = (f"held-out loss {progress.history[-1][2]:.4f} (lowest {lowest:.4f} at step "
                    f"{step}), ")
        return (f"step {progress.step} of {self.settings.train_steps}, {loss}"
                f"{tqdm.format_interval(left)} left at most, "
                f"{format_bytes(peak_memory(self.device))} of memory")

    def _expectation(self, measuring: float) -> str:
        """What training takes at most, for people; a measurement took ``measuring`` seconds.

        Two steps are timed, of which nothing is kept.
        """
        images, settings, parameters = self.images, self.settings, self.parameters
        for _ in range(2):  # the first one also prepares
            started = time.perf_counter()
            for number in range(settings.accumulate):
                self._batch_losses(number)[1].backward()
            # as each step does; reading the norm waits for the GPU
            torch.nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM).item()
            seconds = time.perf_counter() - started
        self.optimizer.zero_grad()
        minutes = min(settings.minutes, (settings.train_steps * seconds + measuring * (
            settings.train_steps // settings.evaluate_every)) / 60)
        # the first step adds AdamW's two moments
        memory = peak_memory(self.device) + 2 * sum(each.nbytes for each in parameters)
        return (f"{len(images.x_0)} images to train on, {len(images.held_out)} to measure on, in "
                f"{len(images.classes) or 'no'} classes; "
                f"{sum(each.numel() for each in parameters) / 1e6:.1f} million parameters; "
                f"{seconds:.2f} s a step, about {minutes:.1f} minutes at most; "
                f"{format_bytes(memory)} of memory")

    def _rate(self, step: int) -> float:
        """The learning rate of a step."""
        settings = self.settings
        rate = settings.learning_rate * min(1.0, (step + 1) / settings.warm_up)
        if settings.cooldown:
            rate *= min(1.0, (1 - self._share_done()) / settings.cooldown)
        return rate

    def _step(self, step: int) -> float:
        """Make one optimizer step; returns the mean squared error of its rows."""
        settings = self.settings
        self.optimizer.param_groups[0]["lr"] = self._rate(step)
        total = 0.0
        for number in range(settings.accumulate):
            error, loss = self._batch_losses(step * settings.accumulate + number)
            if not math.isfinite(error):
                raise AdaptationError(
                    f"the training loss is {error} at step {step}; use a smaller learning_rate "
                    f"than {settings.learning_rate}, or a dtype with more range.")
            self.scaler.scale(loss / settings.accumulate).backward()
            total += error / settings.accumulate
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad = self._agreed(parameter.grad)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, _MAX_GRADIENT_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.trainee.after_step()
        return total

    def _batch_losses(self, number: int) -> tuple[float, Tensor]:
        """Squared error of one batch, and what is minimized."""
        settings, processes = self.settings, self.processes
        part = number * processes.num_processes + processes.process_index
        rows = _rows(part, settings.batch_size, len(self.images.x_0), settings.rng_seed)
        generator = torch.Generator().manual_seed(derive_seed(settings.rng_seed, "step", part))
        x_0, labels = self.images.x_0[rows], self.images.labels[rows]
        eps = torch.randn(x_0.shape, generator=generator)
        levels = spread_levels(len(rows), len(self.schedule), generator)
        if self.trainee.model.guidable:
            dropped = torch.rand(len(rows), generator=generator) < settings.label_dropout
            labels = torch.where(dropped, -1, labels)
        if settings.flip:
            mirrored = torch.rand(len(rows), 1, 1, 1, generator=generator) < settings.flip
            x_0 = torch.where(mirrored, x_0.flip(-1), x_0)
        noised = add_noise(self.schedule, x_0, eps, levels)
        with seeded(derive_seed(settings.rng_seed, "dropout", part), self.device):
            error, loss = self.trainee.losses(noised, self._condition(labels))
        return error.item(), loss

    def _condition(self, labels: Tensor) -> dict[str, Tensor]:
        """Denoiser inputs with one row for each label, (B,); -1 is none."""
        conditions = self.trainee.conditions
        return self.trainee.model.embed([conditions[label] for label in labels.tolist()])

    def _agreed(self, value: Tensor) -> Tensor:
        """The mean over all processes; equal on each to the last bit, so that none stops alone."""
        if self.processes.num_processes == 1:
            return value
        from accelerate.utils import reduce

        mean: Tensor = reduce(value.to(self.device, torch.float32), "mean")
        return mean.to(value)

    def _evaluate(self) -> None:
        """Measure the held-out loss, if any, and keep the weights if it is the lowest so far."""
        images, trainee, progress = self.images, self.trainee, self.progress
        if len(images.held_out):
            losses = held_out_losses(
                lambda x_t, t, labels: trainee.model.denoise(x_t, t, self._condition(labels)),
                images.held_out, images.held_out_labels, self.schedule, self.settings.rng_seed)
            progress.measured.append(self._agreed(losses).tolist())
            trained = fmean(progress.losses) if progress.losses else None
            progress.history.append((progress.step, trained, fmean(progress.measured[-1])))
            progress.losses = []
            if progress.best == len(progress.history) - 1:
                self.best = copied(trainee.kept)

    def _save(self) -> None:
        if self.processes.is_main_process:
            self.progress.scaler = self.scaler.state_dict()
            moments = {f"{number}/{kind}": value
                       for number, state in self.optimizer.state_dict()["state"].items()
                       for kind, value in state.items()}
            save_checkpoint(self.folder, self.identity, self.progress, {
                "now": copied(self.trainee.state), "best": self.best, "moments": copied(moments)})

    def _resume(self) -> None:
        found = load_checkpoint(self.folder, self.identity)
        if found is None:
            return
        self.progress, tensors = found
        self.best = tensors["best"]
        restore(self.trainee.state, tensors["now"])
        moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for key, value in tensors["moments"].items():
            number, _, kind = key.partition("/")
            moments[int(number)][kind] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)


def _rows(part: int, size: int, count: int, rng_seed: int) -> Tensor:
    """Rows of batch number ``part`` of an endless stream of permutations of all images."""
    epochs = range(part * size // count, ((part + 1) * size - 1) // count + 1)
    orders = []
    for epoch in epochs:
        generator = torch.Generator().manual_seed(derive_seed(rng_seed, "epoch", epoch))
        orders.append(torch.randperm(count, generator=generator))
    start = part * size - epochs[0] * count
    return torch.cat(orders)[start : start + size]


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held, in bytes, on a CUDA device or else in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        import psutil  # comes with accelerate

        return cast(int, psutil.Process().memory_info().peak_wset)
    # Linux counts in KB, macOS in bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
