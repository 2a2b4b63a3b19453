"""The reverse process: from trajectories to clean latents, perturbed on the way."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamda_aug.method.inversion import Trajectory
from dreamda_aug.method.perturbation import BottleneckNoise
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.method.seeding import SOURCE, STEP, seeded_normal, seeded_normals
from dreamda_aug.method.settings import ResolvedSettings
from dreamda_aug.method.solvers import Prediction, Predictions, Solver
from dreamda_aug.models import DiffusionModel
from dreamda_aug.models.conditioning import Condition


def sample(
    model: DiffusionModel,
    settings: ResolvedSettings,
    schedule: NoiseSchedule,
    trajectories: Sequence[Trajectory],
    conditions: Sequence[Condition],
    sample_seeds: Sequence[int],
    share_first_step: bool = True,
) -> Tensor:
    """Run one batch from its noisy starts to clean latents.

    Args:
        model: the diffusion model.
        settings: how to sample.
        schedule: the model's, for these settings.
        trajectories: one per sample; replicas of an image repeat the same object.
        conditions: what each sample is conditioned on.
        sample_seeds: one per sample, >= 0.
        share_first_step: replicas start at the same x_T, so the first step needs the encoder once
            for all of them; False keeps the number of rows the same at every step.

    Returns:
        Clean latents, (B, C, H, W), float32, on the model's device.

    Source: DreamDA, arXiv:2403.12803, method figure; replay is ours.
    """
    s, device, count = settings, model.device, len(sample_seeds)
    # a start that several samples have in common is seen once, at its first sample's place
    first: dict[Any, int] = {}
    starts: list[Any] = list(zip(map(id, trajectories), conditions, strict=True))
    if not (share_first_step and can_share_first_step(s)):
        starts = list(range(count))
    for i, start in enumerate(starts):
        first.setdefault(start, i)
    place = {start: row for row, start in enumerate(first)}
    index = torch.tensor([place[start] for start in starts], device=device)
    rows = torch.tensor(list(first.values()), device=device)
    unique = [trajectories[i] for i in first.values()]

    seeds = torch.tensor(sample_seeds, device=device)
    shared = (rows, index) if len(rows) < count else None
    denoiser = _Denoiser(model, s, schedule, conditions, seeds, shared)
    residuals = None
    if s.replay == 0:
        x_0 = _to_device([t.x_0 for t in unique if t.x_0 is not None], device).float()
        x_t = schedule.add_noise(x_0, seeded_normal(seeds, 0, SOURCE, tuple(x_0.shape[1:])), 0)
    else:
        x_t = _to_device([t.x_T for t in unique if t.x_T is not None], device).float()
        recorded = [t.residuals for t in unique if t.residuals is not None]
        if recorded:
            residuals = _to_device(recorded, device)
    solver = Solver(s.solver, schedule, s.eta)
    replays = [_replay_at(s, step, len(schedule)) for step in range(len(schedule))]
    free = [step for step, replay in enumerate(replays) if replay < 1]
    fresh = seeded_normals(seeds, free, STEP, tuple(x_t.shape[1:]))
    for step, replay in enumerate(replays):
        x_t, std = solver.step(x_t, step, denoiser)
        if residuals is not None and replay > 0:
            x_t = x_t + replay * residuals[index, step].float()
        if replay < 1:
            x_t = x_t + (1 - replay**2) ** 0.5 * std * next(fresh)
    # what the last step leaves over belongs to the end of the run
    if residuals is not None and s.replay_interval[1] == 1:
        x_t = x_t + s.replay * residuals[index, len(schedule)].float()
    return x_t


def can_share_first_step(settings: ResolvedSettings) -> bool:
    """Whether replicas of an image have the first denoiser call in common.

    Heun's second call starts from each sample's own first step, and without replay each sample has
    a start of its own.
    """
    return settings.replay > 0 and settings.solver != "heun"


def _replay_at(settings: ResolvedSettings, step: int, steps: int) -> float:
    """The share of this step's residual that is replayed."""
    start, stop = settings.replay_interval
    return settings.replay if start <= step / steps < stop else 0.0


def _to_device(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """Stack CPU tensors on a device; to CUDA through pinned memory, without waiting."""
    stacked = torch.stack(list(tensors))
    if device.type == "cuda":
        stacked = stacked.pin_memory()
    return stacked.to(device, non_blocking=True)


class _Rows(NamedTuple):
    """Rows of one denoiser call; the same at all steps that are guided alike.

    Attributes:
        condition: conditions of the U-Net, a row for each input.
        branches: for each decoder row, the input row that it belongs to; None: row i to input i.
        clean: number of decoder rows, the first ones, that stay unperturbed.
        arguments: arguments of the perturbation for the other rows.
    """

    condition: dict[str, Tensor]
    branches: Tensor | None
    clean: int
    arguments: dict[str, Tensor]


class _Denoiser:
    """One batch's conditions, seeds and scales, laid out for the hook.

    Everything that the steps need is made before the first one, so that no step waits for the GPU
    or copies from the CPU.

    Args:
        shared: for each first-step input, a sample with its condition, and for each of the N
            samples its first-step input, both (…,) int64; None: nothing is shared.
    """

    def __init__(
        self, model: DiffusionModel, settings: ResolvedSettings, schedule: NoiseSchedule,
        conditions: Sequence[Condition], seeds: Tensor, shared: tuple[Tensor, Tensor] | None,
    ):
        self.model, self.settings, self.schedule = model, settings, schedule
        self.guided = model.guidable and settings.guidance_scale > 1
        self.calls = torch.arange(2 * len(schedule), device=seeds.device)
        self.noisy = settings.noise_scale > 0
        self.index = None if shared is None else shared[1]
        condition = model.embed(conditions)
        null = model.embed([None]) if self.guided else None
        scales = torch.full(
            seeds.shape, settings.noise_scale, device=seeds.device, dtype=torch.float32)
        first = self._guided_at(0)
        rest = {self._guided_at(step) for step in range(len(schedule))}
        self._first = self._rows(first, condition, null, seeds, scales, shared)
        self._rest = {guided: self._rows(guided, condition, null, seeds, scales, None)
                      for guided in rest}

    def __call__(self, x: Tensor, level: int, call: int) -> Predictions:
        """Predictions with and without perturbation, (N, C, H, W) each.

        Args:
            x: noisy latents: (U, C, H, W) at a first step that is shared, else (N, C, H, W).
            level: number of the noise level.
            call: number of the denoiser call in this run; each draws noise of its own.
        """
        guided = self._guided_at(level)
        condition, branches, clean, arguments = self._rest[guided] if call else self._first
        groups, index = (2 if guided else 1), (None if call else self.index)
        hook = self.model.hook
        hook.set(self.settings.perturbation if self.noisy else None, branches, clean,
                groups * len(x), step=self.calls[call], **arguments)
        try:
            output = self.model.predict(
                torch.cat([self.schedule.model_input(x, level)] * groups),
                self.schedule.timesteps[level], condition)
            hook.check_fired()
        finally:
            hook.clear()
        perturbed = Prediction(*self.schedule.predictions(
            self._guide(output[clean:], guided), x if index is None else x[index], level
        ))
        if not clean:
            return Predictions(perturbed, perturbed)
        pair = self.schedule.predictions(self._guide(output[:clean], guided), x, level)
        return Predictions(
            perturbed, Prediction(*(each if index is None else each[index] for each in pair)))

    def _rows(
        self, guided: bool, condition: dict[str, Tensor], null: dict[str, Tensor] | None,
        seeds: Tensor, scales: Tensor, shared: tuple[Tensor, Tensor] | None,
    ) -> _Rows:
        device, samples = seeds.device, torch.arange(len(seeds), device=seeds.device)
        inputs = len(seeds)
        if shared is not None:
            rows, samples = shared
            inputs = len(rows)
            condition = {name: value[rows] for name, value in condition.items()}
        if guided and null is not None:
            condition = {name: torch.cat([null[name].expand_as(value), value])
                         for name, value in condition.items()}
        groups = 2 if guided else 1
        perturbed = torch.cat([samples + group * inputs for group in range(groups)])
        asymmetric = self.noisy and self.settings.update_rule == "asymmetric"
        # noise that the rows of a sample share is drawn once
        own = self.settings.perturbation
        draws = 1 if isinstance(own, BottleneckNoise) and own.shared else groups
        clean = groups * inputs if asymmetric else 0
        branches = torch.cat([torch.arange(clean, device=device), perturbed])
        return _Rows(
            condition, branches if clean or shared is not None else None, clean,
            {"seeds": seeds.repeat(draws), "scale": scales.repeat(groups),
             "unconditional": torch.arange(groups * len(seeds), device=device)
             < (groups - 1) * len(seeds)},
        )

    def _guided_at(self, level: int) -> bool:
        return self.guided and self.settings.guides_at(level, len(self.schedule))

    def _guide(self, output: Tensor, guided: bool) -> Tensor:
        """Classifier-free guidance, arXiv:2207.12598, eq. 6, in the form that diffusers uses."""
        if not guided:
            return output
        unconditional, conditional = output.chunk(2)
        return unconditional + self.settings.guidance_scale * (conditional - unconditional)
