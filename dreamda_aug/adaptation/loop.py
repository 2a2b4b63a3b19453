"""The training loop of `adapt` and `train`: the weights with the lowest held-out loss are kept."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dreamda_aug.adaptation.checkpoint import (
    Checkpoint,
    Progress,
    load_checkpoint,
    moments_of,
    put_moments,
    save_checkpoint,
)
from dreamda_aug.adaptation.images import TrainingImages
from dreamda_aug.adaptation.objective import HeldOut, Noised, add_noise, spread_levels
from dreamda_aug.errors import AdaptationError
from dreamda_aug.files import format_bytes
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.method.seeding import derive_seed

_MAX_GRADIENT_NORM = 1.0
_SAVE_SECONDS = 120.0
# Held-out images are measured without gradients, which takes far less memory per row.
_MEASURED_AT_ONCE = 32


class Trainable(Protocol):
    """A denoiser that the loop trains.

    Attributes:
        parameters: everything that is trained, float32, by name.
        can_drop: whether it has an unconditional branch, for which labels are dropped.
        device: where it lies.
        dtype: of its activations.
    """

    parameters: dict[str, nn.Parameter]

    @property
    def can_drop(self) -> bool: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def losses(self, noised: Noised, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error of a batch, and what is minimized, both scalars with gradients.

        Args:
            noised: the batch, on the device.
            labels: (B,) int64; -1 is none.
        """
        ...

    def predict_kept(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The denoiser's output with the weights that `kept` returns, without gradients."""
        ...

    def predict_before(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The output of the model before any training."""
        ...

    def after_step(self) -> None:
        """Called after each optimizer step."""
        ...

    def kept(self) -> dict[str, Tensor]:
        """A copy of the weights that a user gets, on the CPU."""
        ...

    def state(self) -> dict[str, Tensor]:
        """A copy of everything that training resumes from, on the CPU."""
        ...

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Set what `state` returned."""
        ...


@dataclass(frozen=True)
class LoopSettings:
    """How the loop trains.

    Attributes:
        train_steps: optimizer steps at most.
        minutes: time at most, of all runs together; infinite: no limit.
        learning_rate: AdamW's, at its peak.
        warm_up: steps in which it rises.
        cooldown: share of the steps (or minutes) at the end in which it falls to 0.
        weight_decay: AdamW's.
        batch_size: images per denoiser call.
        accumulate: batches per step.
        label_dropout: share of images trained without their class or prompt.
        flip: probability that an image is mirrored.
        evaluate_every: steps between two measurements of the held-out loss.
        patience: measurements without a new lowest loss after which training stops.
        rng_seed: of batches and noise.
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


def open_processes() -> Any:
    """accelerate's view of the processes; among several, it chooses this one's device.

    Raises:
        ImportError: accelerate is not installed.
    """
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


class TrainingLoop:
    """Trains one denoiser; resumes from the checkpoint in its folder.

    Args:
        model: what is trained.
        images: what it is trained and measured on; nothing is measured where none are held out.
        schedule: the noise levels, on the model's device.
        settings: how.
        processes: what `open_processes` returned.
        folder: where the checkpoint lies.
        identity: what must be the same for training to resume.
        show_progress: draw a progress bar on a terminal.
    """

    def __init__(
        self, model: Trainable, images: TrainingImages, schedule: NoiseSchedule,
        settings: LoopSettings, processes: Any, folder: Path, identity: dict[str, Any],
        show_progress: bool,
    ):
        self.model, self.images, self.schedule = model, images, schedule
        self.settings, self.processes = settings, processes
        self.folder, self.identity, self.show_progress = folder, identity, show_progress
        self.names = list(model.parameters)
        self.optimizer = torch.optim.AdamW(
            list(model.parameters.values()), lr=settings.learning_rate,
            weight_decay=settings.weight_decay)
        # small gradients are lost in float16 activations, unless they are scaled
        self.scaler = torch.amp.GradScaler(
            model.device.type, enabled=model.dtype == torch.float16)
        self.held_out = None
        if len(images.held_out):
            self.held_out = HeldOut.draw(images.held_out, images.held_out_labels, len(schedule),
                                         settings.rng_seed)
        self.progress, self.best = Progress(), model.kept()

    def run(self) -> tuple[Progress, dict[str, Tensor]]:
        """Train to the end.

        Returns:
            What was measured, and the weights after the best step.

        Raises:
            AdaptationError: the loss is NaN; or the folder holds another training.
        """
        self._resume()
        progress, settings = self.progress, self.settings
        started = time.monotonic() - progress.seconds
        saved = time.monotonic()
        if self.held_out is not None and not progress.measured:
            progress.before = self._measure(self.model.predict_before).tolist()
            self._evaluate(None)
        losses: list[float] = []
        with tqdm(total=settings.train_steps, initial=progress.step, unit="step",
                  disable=None if self.show_progress and self._is_main else True) as bar:
            while self._share_done() < 1 and not self._is_stale:
                losses.append(self._step(progress.step))
                progress.step += 1
                progress.seconds = time.monotonic() - started
                bar.update()
                if self.held_out is not None and (
                    self._share_done() >= 1 or progress.step % settings.evaluate_every == 0
                ):
                    self._evaluate(sum(losses) / len(losses))
                    losses = []
                    bar.set_postfix(held_out=f"{progress.history[-1][2]:.5f}",
                                    best=f"{progress.best_loss:.5f}",
                                    memory=peak_memory(self.model.device))
                    self._save()
                    saved = time.monotonic()
                elif time.monotonic() - saved > _SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
        if self.held_out is None:
            progress.best_step, self.best = progress.step, self.model.kept()
        return progress, self.best

    @property
    def _is_main(self) -> bool:
        return bool(self.processes.is_main_process)

    @property
    def _is_stale(self) -> bool:
        return self.held_out is not None and self.progress.stale >= self.settings.patience

    def _share_done(self) -> float:
        progress, settings = self.progress, self.settings
        return max(progress.step / settings.train_steps, progress.seconds / 60 / settings.minutes)

    def _rate(self, step: int) -> float:
        """The learning rate of a step."""
        settings = self.settings
        rate = settings.learning_rate * min(1.0, (step + 1) / settings.warm_up)
        if settings.cooldown:
            rate *= min(1.0, (1 - self._share_done()) / settings.cooldown)
        return rate

    def _step(self, step: int) -> float:
        """One optimizer step; the mean squared error of its rows."""
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
        parameters = list(self.model.parameters.values())
        if self.processes.num_processes > 1:
            from accelerate.utils import reduce

            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad = reduce(parameter.grad, "mean")
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, _MAX_GRADIENT_NORM)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.model.after_step()
        return total

    def _batch_losses(self, number: int) -> tuple[float, Tensor]:
        """Squared error of one batch, and what is minimized."""
        settings, processes, device = self.settings, self.processes, self.model.device
        part = number * processes.num_processes + processes.process_index
        rows = torch.tensor(list(_rows(part, settings.batch_size, len(self.images.x_0),
                                       settings.rng_seed)))
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
        noised = add_noise(self.schedule, x_0.to(device), eps.to(device), levels.to(device))
        error, loss = self.model.losses(noised, labels)
        return error.item(), loss

    def _measure(self, denoise: Any) -> Tensor:
        assert self.held_out is not None
        found = self.held_out.losses(denoise, self.schedule, _MEASURED_AT_ONCE, self.model.device)
        if self.processes.num_processes > 1:
            from accelerate.utils import reduce

            # the same on all of them to the last bit, or they would not stop together
            found = reduce(found.to(self.model.device, torch.float32), "mean")
        return found.cpu()

    def _evaluate(self, training_loss: float | None) -> None:
        if self.progress.add(self._measure(self.model.predict_kept).tolist(), training_loss):
            self.best = self.model.kept()

    def _save(self) -> None:
        if not self._is_main:
            return
        self.progress.scaler = self.scaler.state_dict()
        save_checkpoint(self.folder, self.identity, Checkpoint(
            self.progress, self.model.state(), self.best,
            moments_of(self.optimizer, self.names)))

    def _resume(self) -> None:
        state = load_checkpoint(self.folder, self.identity)
        if state is None:
            return
        self.progress, self.best = state.progress, state.best
        self.model.set_state(state.now)
        put_moments(self.optimizer, self.names, state.moments)
        if state.progress.scaler:
            self.scaler.load_state_dict(state.progress.scaler)


def peak_memory(device: torch.device) -> str:
    """The most memory that this process has held, on a CUDA device or else in all."""
    if device.type == "cuda":
        return format_bytes(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    return format_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _rows(part: int, size: int, count: int, rng_seed: int) -> Iterator[int]:
    """Rows of batch number ``part`` of an endless stream of permutations of all images."""
    order: list[int] = []
    at = None
    for place in range(part * size, (part + 1) * size):
        if place // count != at:
            at = place // count
            generator = torch.Generator().manual_seed(derive_seed(rng_seed, "epoch", at))
            order = torch.randperm(count, generator=generator).tolist()
        yield order[place % count]
