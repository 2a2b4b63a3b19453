"""The training loop of `adapt` and `train`: the weights with the lowest held-out loss are kept."""

import importlib
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dreamda_aug.adaptation.training_images import (
    Noised,
    TrainingImages,
    add_noise,
    held_out_losses,
    spread_levels,
)
from dreamda_aug.adaptation.training_state import Progress, load_checkpoint, save_checkpoint
from dreamda_aug.errors import AdaptationError
from dreamda_aug.files import format_bytes, remove_temporaries
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.method.seeding import derive_seed

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

    device: torch.device
    dtype: torch.dtype
    parameters: dict[str, nn.Parameter]  # what is trained, by name
    can_drop: bool  # whether it has a condition for images without labels

    def losses(self, noised: Noised, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean squared error of a batch, and what is minimized."""

    def predict(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Output of the one that is kept, (B, C, H, W); labels are (B,) int64, and -1 is none."""

    def after_step(self) -> None:
        """Called after each step of the optimizer."""

    def kept(self) -> dict[str, Tensor]:
        """A copy of the weights that are kept, on the CPU."""

    def state(self) -> dict[str, Tensor]:
        """A copy of all that training needs to resume, on the CPU."""

    def set_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Set what `state` returned."""


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


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator for a while: first weights and dropout draw from no other."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class TrainingLoop:
    """Trains one denoiser; resumes from the checkpoint in its folder.

    Args:
        model: what is trained.
        images: the images; nothing is measured where none are held out.
        schedule: the noise levels, on the model's device.
        settings: how.
        processes: what `open_processes` returned.
        folder: where the checkpoint lies.
        identity: what must be the same for training to resume.
        shows: show time left and memory: as a bar on a terminal, else as lines in the log.
    """

    def __init__(
        self, model: Trainee, images: TrainingImages, schedule: NoiseSchedule,
        settings: LoopSettings, processes: Any, folder: Path, identity: dict[str, Any],
        shows: bool,
    ):
        self.model, self.images, self.schedule = model, images, schedule
        self.settings, self.processes = settings, processes
        self.folder, self.identity = folder, identity
        self.shows = shows and processes.is_main_process
        self.optimizer = torch.optim.AdamW(
            model.parameters.values(), settings.learning_rate, weight_decay=settings.weight_decay)
        # small gradients are lost in float16 activations, unless they are scaled
        self.scaler = torch.amp.GradScaler(
            model.device.type, enabled=model.dtype == torch.float16)
        self.progress, self.best = Progress(), model.kept()

    def run(self) -> tuple[Progress, dict[str, Tensor]]:
        """Train to the end.

        Returns:
            What was measured, and the weights after the best step.

        Raises:
            AdaptationError: the loss is NaN; or the folder holds another training.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(self.folder)
        self._resume()
        progress, settings = self.progress, self.settings
        saved, first = time.monotonic(), progress.step
        begun = saved - progress.seconds
        if not progress.history:
            self._evaluate()
        with tqdm(total=1.0, bar_format=_BAR, disable=None if self.shows else True) as bar:
            while self._share_done() < 1 and progress.stale < settings.patience:
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
                elif self.shows and (saves or progress.step == first + 3):
                    logger.warning("%s", self._state())
        if not progress.measured:
            progress.best_step, self.best = progress.step, self.model.kept()
        return progress, self.best

    def _share_done(self) -> float:
        progress, settings = self.progress, self.settings
        return max(progress.step / settings.train_steps, progress.seconds / 60 / settings.minutes)

    def _state(self) -> str:
        """How far training is, for people."""
        progress, device = self.progress, self.model.device
        left = progress.seconds * (1 / max(self._share_done(), 1e-9) - 1)
        loss = "" if not progress.history else (
            f"held-out loss {progress.history[-1][2]:.4f} (lowest {progress.best_loss:.4f} at "
            f"step {progress.best_step}), ")
        return (f"step {progress.step} of {self.settings.train_steps}, {loss}"
                f"{tqdm.format_interval(left)} left at most, {peak_memory(device)} of memory")

    def _rate(self, step: int) -> float:
        """The learning rate of a step."""
        settings = self.settings
        rate = settings.learning_rate * min(1.0, (step + 1) / settings.warm_up)
        if settings.cooldown:
            rate *= min(1.0, (1 - self._share_done()) / settings.cooldown)
        return rate

    def _step(self, step: int) -> float:
        """Make one optimizer step; returns the mean squared error of its rows."""
        settings, parameters = self.settings, list(self.model.parameters.values())
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
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = self._agreed(parameter.grad)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.model.after_step()
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
        if self.model.can_drop:
            dropped = torch.rand(len(rows), generator=generator) < settings.label_dropout
            labels = torch.where(dropped, -1, labels)
        if settings.flip:
            mirrored = torch.rand(len(rows), 1, 1, 1, generator=generator) < settings.flip
            x_0 = torch.where(mirrored, x_0.flip(-1), x_0)
        noised = add_noise(self.schedule, x_0, eps, levels)
        with seeded(derive_seed(settings.rng_seed, "dropout", part), self.model.device):
            error, loss = self.model.losses(noised, labels)
        return error.item(), loss

    def _agreed(self, value: Tensor) -> Tensor:
        """The mean over all processes; equal on each to the last bit, so that none stops alone."""
        if self.processes.num_processes == 1:
            return value
        from accelerate.utils import reduce

        mean: Tensor = reduce(value.to(self.model.device, torch.float32), "mean")
        return mean.to(value)

    def _evaluate(self) -> None:
        """Measure the held-out loss, if any, and keep the weights if it is the lowest so far."""
        if len(self.images.held_out):
            losses = held_out_losses(
                self.model.predict, self.images.held_out, self.images.held_out_labels,
                self.schedule, self.settings.rng_seed)
            if self.progress.add(self._agreed(losses).tolist()):
                self.best = self.model.kept()

    def _save(self) -> None:
        if self.processes.is_main_process:
            self.progress.scaler = self.scaler.state_dict()
            moments = {f"{name}/{kind}": value.cpu().contiguous()
                       for name, parameter in self.model.parameters.items()
                       for kind, value in self.optimizer.state.get(parameter, {}).items()}
            save_checkpoint(self.folder, self.identity, self.progress, {
                "now": self.model.state(), "best": self.best, "moments": moments})

    def _resume(self) -> None:
        found = load_checkpoint(self.folder, self.identity)
        if found is None:
            return
        self.progress, tensors = found
        self.best = tensors["best"]
        self.model.set_state(tensors["now"])
        for key, value in tensors["moments"].items():
            name, _, kind = key.rpartition("/")
            parameter = self.model.parameters[name]
            self.optimizer.state[parameter][kind] = (
                value.clone() if kind == "step" else value.to(parameter))
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


def peak_memory(device: torch.device) -> str:
    """The most memory that this process has held, on a CUDA device or else in all."""
    if device.type == "cuda":
        return format_bytes(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    # Linux counts in KB, macOS in bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return format_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
