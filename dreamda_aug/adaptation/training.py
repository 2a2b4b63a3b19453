"""The training loop: accelerate for processes, the best step by held-out loss."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
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
from dreamda_aug.adaptation.model import AdaptedModel
from dreamda_aug.adaptation.objective import HeldOut, add_noise, spread_levels
from dreamda_aug.adaptation.settings import AdaptationSettings
from dreamda_aug.errors import AdaptationError
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.method.seeding import derive_seed

_WARM_UP_STEPS = 20
_MAX_GRADIENT_NORM = 1.0
_SAVE_SECONDS = 120.0
# Held-out images are measured without gradients, which takes far less memory per row.
_MEASURED_AT_ONCE = 32


def open_processes() -> Any:
    """accelerate's view of the processes; among several, it chooses this one's device.

    Raises:
        ImportError: accelerate is not installed.
    """
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


class Training:
    """One adaptation's training, which goes on from its checkpoint.

    Args:
        model: what is trained.
        images: what it is trained and measured on.
        schedule: the noise levels, on the model's device.
        settings: how.
        processes: what `open_processes` returned.
        folder: where the checkpoint lies.
        identity: what must be the same for training to go on.
        show_progress: draw a progress bar on a terminal.
    """

    def __init__(
        self, model: AdaptedModel, images: TrainingImages, schedule: NoiseSchedule,
        settings: AdaptationSettings, processes: Any, folder: Path, identity: dict[str, Any],
        show_progress: bool,
    ):
        self.model, self.images, self.schedule = model, images, schedule
        self.settings, self.processes = settings, processes
        self.folder, self.identity = folder, identity
        self.device, self.show_progress = model.model.device, show_progress
        self.names = list(model.parameters)
        assert settings.learning_rate is not None  # resolved
        self.learning_rate = settings.learning_rate
        self.optimizer = torch.optim.AdamW(list(model.parameters.values()), lr=self.learning_rate,
                                           weight_decay=0.0)
        # small gradients are lost in float16 activations, unless they are scaled
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=model.model.dtype == torch.float16)
        self.held_out = None
        if settings.early_stopping:
            self.held_out = HeldOut.draw(images.held_out, images.held_out_labels, len(schedule),
                                         settings.rng_seed)
        self.progress, self.best = Progress(), model.tensors()

    def run(self) -> tuple[Progress, dict[str, Tensor]]:
        """Train to the end.

        Returns:
            What was measured, and what is trained as it was after the best step.

        Raises:
            AdaptationError: the loss is NaN; or the folder holds another adaptation.
        """
        self._resume()
        progress, settings = self.progress, self.settings
        started = time.monotonic() - progress.seconds
        saved = time.monotonic()
        if self.held_out is not None and not progress.prior:
            progress.prior = self._measure(self.model.prior).tolist()
            progress.best = self._measure(self.model.predict).tolist()
            progress.history.append((0, None, _mean(progress.best)))
        losses: list[float] = []
        with tqdm(total=settings.last_step, initial=progress.step, unit="step",
                  disable=None if self.show_progress and self._is_main else True) as bar:
            while progress.step < settings.last_step and not self._is_stale:
                losses.append(self._step(progress.step))
                progress.step += 1
                progress.seconds = time.monotonic() - started
                bar.update()
                last = progress.step == settings.last_step
                if self.held_out is not None and (
                    last or progress.step % settings.evaluate_every == 0
                ):
                    self._evaluate(_mean(losses))
                    losses = []
                    bar.set_postfix(held_out=f"{progress.history[-1][2]:.5f}",
                                    best=f"{_mean(progress.best):.5f}")
                    self._save()
                    saved = time.monotonic()
                elif time.monotonic() - saved > _SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
        if self.held_out is None:
            progress.best_step, self.best = progress.step, self.model.tensors()
        return progress, self.best

    @property
    def _is_main(self) -> bool:
        return bool(self.processes.is_main_process)

    @property
    def _is_stale(self) -> bool:
        return self.held_out is not None and self.progress.stale >= self.settings.patience

    def _step(self, step: int) -> float:
        """One optimizer step; the mean squared error of its rows."""
        settings = self.settings
        rate = self.learning_rate * min(1.0, (step + 1) / _WARM_UP_STEPS)
        self.optimizer.param_groups[0]["lr"] = rate
        total = 0.0
        for number in range(settings.accumulate):
            micro = step * settings.accumulate + number
            error, loss = self._batch_loss(micro)
            if not math.isfinite(error):
                raise AdaptationError(
                    f"the training loss is {error} at step {step}; use a smaller learning_rate "
                    f"than {self.learning_rate}, or a dtype with more range.")
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
        return total

    def _batch_loss(self, micro: int) -> tuple[float, Tensor]:
        """Squared error of one batch, and what is minimised: with the distance to the prior."""
        settings, processes = self.settings, self.processes
        part = micro * processes.num_processes + processes.process_index
        rows = torch.tensor(list(_rows(part, settings.batch_size, len(self.images.x_0),
                                       settings.rng_seed)))
        generator = torch.Generator().manual_seed(derive_seed(settings.rng_seed, "step", part))
        x_0, labels = self.images.x_0[rows], self.images.labels[rows]
        eps = torch.randn(x_0.shape, generator=generator)
        levels = spread_levels(len(rows), len(self.schedule), generator)
        if self.model.conditions.can_drop:
            dropped = torch.rand(len(rows), generator=generator) < settings.label_dropout
            labels = torch.where(dropped, -1, labels)
        noised = add_noise(self.schedule, x_0.to(self.device), eps.to(self.device),
                           levels.to(self.device))
        # without autocast: frozen weights run in their own precision, as they do in generation
        output = self.model.predict(noised.x_t, noised.t, labels)
        prior = None
        if settings.prior_weight:
            prior = self.model.prior(noised.x_t, noised.t, labels)
        error = (output - noised.target).square().mean()
        if prior is None:
            return error.item(), error
        return error.item(), error + settings.prior_weight * (output - prior).square().mean()

    def _measure(self, denoise: Any) -> Tensor:
        assert self.held_out is not None
        found = self.held_out.losses(denoise, self.schedule, _MEASURED_AT_ONCE, self.device)
        if self.processes.num_processes > 1:
            from accelerate.utils import reduce

            # the same on all of them to the last bit, or they would not stop together
            found = reduce(found.to(self.device, torch.float32), "mean")
        return found.cpu()

    def _evaluate(self, training_loss: float) -> None:
        progress, found = self.progress, self._measure(self.model.predict)
        progress.history.append((progress.step, training_loss, found.mean().item()))
        progress.stale += 1
        if found.mean().item() < _mean(progress.best):
            progress.best, progress.best_step, progress.stale = found.tolist(), progress.step, 0
            self.best = self.model.tensors()

    def _save(self) -> None:
        if not self._is_main:
            return
        self.progress.scaler = self.scaler.state_dict()
        save_checkpoint(self.folder, self.identity, Checkpoint(
            self.progress, self.model.tensors(), self.best,
            moments_of(self.optimizer, self.names)))

    def _resume(self) -> None:
        state = load_checkpoint(self.folder, self.identity)
        if state is None:
            return
        self.progress, self.best = state.progress, state.best
        self.model.put(state.now)
        put_moments(self.optimizer, self.names, state.moments)
        if state.progress.scaler:
            self.scaler.load_state_dict(state.progress.scaler)


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


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
