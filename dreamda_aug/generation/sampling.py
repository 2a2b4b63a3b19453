"""One run over a noise schedule: from images to trajectories, and from those to clean latents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamda_aug.method.inversion import Trajectory, record
from dreamda_aug.method.perturbation import BottleneckNoise
from dreamda_aug.method.schedule import NoiseSchedule, Prediction
from dreamda_aug.method.seeding import SOURCE, STEP, seeded_normal, seeded_normals
from dreamda_aug.method.settings import ResolvedSettings
from dreamda_aug.method.solvers import Solver
from dreamda_aug.models import DiffusionModel
from dreamda_aug.models.conditioning import Condition


@dataclass(frozen=True)
class Run:
    """Inverts and samples batches with one model.

    Attributes:
        model: the diffusion model.
        settings: how to invert and sample.
        schedule: the model's, for these settings.
    """

    model: DiffusionModel
    settings: ResolvedSettings
    schedule: NoiseSchedule

    def invert(
        self, images: Tensor, conditions: Sequence[Condition], path_seeds: Sequence[int],
        dtype: torch.dtype,
    ) -> list[Trajectory]:
        """One trajectory per image, on the CPU; with replay 0, the encoded image alone.

        Args:
            images: (B, C, H, W) in [0, 1].
            conditions: what the inversion of each image is conditioned on.
            path_seeds: one per image, >= 0: the noise of its source path.
            dtype: what trajectories are rounded to.
        """
        model, s, schedule = self.model, self.settings, self.schedule
        x_0 = model.encode(images)
        if s.replay == 0:
            return [Trajectory(x_0=latent) for latent in x_0.to(dtype).cpu()]
        condition = model.embed(conditions)

        def predict(x: Tensor, level: int) -> Tensor:
            return model.predict(
                schedule.model_input(x, level), schedule.timesteps[level], condition)

        seeds = torch.tensor(path_seeds, device=model.device)
        path = s.inversion.source_path(x_0, predict, schedule, s.eta, seeds)
        if not s.inversion.records_residuals:
            return [Trajectory(x_T) for x_T in path[0].to(dtype).cpu()]
        x_T, residuals = record(path, predict, schedule, s.eta, dtype, s.solver)
        return [Trajectory(*pair) for pair in zip(x_T.cpu(), residuals.cpu(), strict=True)]

    def sample(
        self, trajectories: Sequence[Trajectory], conditions: Sequence[Condition],
        sample_seeds: Sequence[int], share_first_step: bool = True,
    ) -> Tensor:
        """Clean latents of a batch, (B, C, H, W), float32, on the model's device.

        Args:
            trajectories: one per sample; replicas of an image repeat the same object.
            conditions: what each sample is conditioned on.
            sample_seeds: one per sample, >= 0.
            share_first_step: replicas start at the same x_T, so the first step needs the encoder
                once for all of them; False keeps the number of rows the same at every step.

        Source: DreamDA, arXiv:2403.12803, method figure; replay is ours.
        """
        s, schedule, device = self.settings, self.schedule, self.model.device
        # a start that several samples have in common is seen once, at its first sample's place
        starts: list[Any] = list(range(len(sample_seeds)))
        if share_first_step and self.can_share_first_step:
            starts = list(zip(map(id, trajectories), conditions, strict=True))
        distinct = list(dict.fromkeys(starts))
        first = [starts.index(start) for start in distinct]
        index = torch.tensor([distinct.index(start) for start in starts], device=device)
        seeds, rows = (torch.tensor(each, device=device) for each in (sample_seeds, first))
        denoiser = _Denoiser(
            self, conditions, seeds, (rows, index) if len(distinct) < len(starts) else None)
        # all trajectories of a batch keep the same tensors
        kept = [trajectories[i].tensors() for i in first]
        recorded = {name: _to_device([each[name] for each in kept], device) for name in kept[0]}
        residuals = recorded.get("residuals")
        if s.replay == 0:
            x_0 = recorded["x_0"].float()
            x_t = schedule.add_noise(x_0, seeded_normal(seeds, 0, SOURCE, tuple(x_0.shape[1:])), 0)
        else:
            x_t = recorded["x_T"].float()
        solver = Solver(s.solver, schedule, s.eta)
        replays = [s.replay_at(step, len(schedule)) for step in range(len(schedule))]
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

    @property
    def guided(self) -> list[bool]:
        """Whether each step is guided."""
        steps = len(self.schedule)
        return [self.model.guidable and self.settings.guides_at(step, steps)
                for step in range(steps)]

    @property
    def can_share_first_step(self) -> bool:
        """Whether replicas of an image have the first denoiser call in common."""
        # without replay each sample has a start of its own; Heun's second call belongs to a sample
        return self.settings.replay > 0 and self.settings.solver != "heun"


def _to_device(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Stack CPU tensors on a device; to CUDA through pinned memory, without waiting."""
    stacked = torch.stack(tensors)
    if device.type == "cuda":
        stacked = stacked.pin_memory()
    return stacked.to(device, non_blocking=True)


class _Layout(NamedTuple):
    """Rows of one denoiser call; the same at all steps that are guided alike."""

    condition: dict[str, Tensor]  # a row for each input
    branches: Tensor | None  # the input row of each decoder row; or None where input i has row i
    clean: int  # number of decoder rows, the first ones, that stay unperturbed
    arguments: dict[str, Tensor]  # of the perturbation, for the other rows


class _Denoiser:
    """One batch's conditions, seeds and scales, laid out for the hook.

    Everything that the steps need is made before the first one, so that no step waits for the GPU
    or copies from the CPU. ``shared`` has, for each first-step input, a sample with its condition,
    and for each of the N samples its first-step input, or is None if nothing is shared.
    """

    def __init__(
        self, run: Run, conditions: Sequence[Condition], seeds: Tensor,
        shared: tuple[Tensor, Tensor] | None,
    ):
        self.model, self.settings, self.schedule = run.model, run.settings, run.schedule
        self.guided, self.noisy = run.guided, self.settings.noise_scale > 0
        self.calls = torch.arange(2 * len(self.schedule), device=seeds.device)
        self.index: Tensor | slice = slice(None) if shared is None else shared[1]
        condition = self.model.embed(conditions)
        null = self.model.embed([None]) if any(self.guided) else {}
        self._first = self._layout(self.guided[0], condition, null, seeds, shared)
        self._rest = {guided: self._layout(guided, condition, null, seeds, None)
                      for guided in set(self.guided)}

    def __call__(self, x: Tensor, level: int, call: int) -> tuple[Prediction, Prediction]:
        """Predictions for x, (N, C, H, W), or (U, C, H, W) at a first step that is shared."""
        guided, index = self.guided[level], self.index if call == 0 else slice(None)
        condition, branches, clean, arguments = self._rest[guided] if call else self._first
        with self.model.hook.perturbing(self.settings.perturbation if self.noisy else None,
                                        branches, clean, step=self.calls[call], **arguments):
            output = self.model.predict(
                torch.cat([self.schedule.model_input(x, level)] * (1 + guided)),
                self.schedule.timesteps[level], condition)
        perturbed = self.schedule.predictions(
            self._guide(output[clean:], guided), x[index], level)
        if not clean:
            return perturbed, perturbed
        pair = self.schedule.predictions(self._guide(output[:clean], guided), x, level)
        return perturbed, Prediction(*(each[index] for each in pair))

    def _layout(
        self, guided: bool, condition: dict[str, Tensor], null: dict[str, Tensor],
        seeds: Tensor, shared: tuple[Tensor, Tensor] | None,
    ) -> _Layout:
        groups, s, inputs, device = 1 + guided, self.settings, len(seeds), seeds.device
        samples = torch.arange(inputs, device=device)
        if shared is not None:
            rows, samples = shared
            inputs = len(rows)
            condition = {name: value[rows] for name, value in condition.items()}
        if guided:
            condition = {name: torch.cat([null[name].expand_as(value), value])
                         for name, value in condition.items()}
        perturbed = torch.cat([samples + group * inputs for group in range(groups)])
        clean = groups * inputs if self.noisy and s.update_rule == "asymmetric" else 0
        branches = torch.cat([torch.arange(clean, device=device), perturbed])
        # noise that the rows of a sample share is drawn once
        draws_once = isinstance(s.perturbation, BottleneckNoise) and s.perturbation.shared
        return _Layout(
            condition, branches if clean or shared is not None else None, clean,
            {"seeds": seeds if draws_once else seeds.repeat(groups),
             "scale": torch.full(
                 (len(perturbed),), s.noise_scale, device=device, dtype=torch.float32),
             "unconditional": torch.arange(len(perturbed), device=device)
             < (groups - 1) * len(seeds)})

    def _guide(self, output: Tensor, guided: bool) -> Tensor:
        """Classifier-free guidance, arXiv:2207.12598, eq. 6, in the form that diffusers uses."""
        if not guided:
            return output
        unconditional, conditional = output.chunk(2)
        return unconditional + self.settings.guidance_scale * (conditional - unconditional)
