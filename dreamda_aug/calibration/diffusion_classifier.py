"""The diffusion model as a classifier, by its denoising error under each class."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamda_aug.arguments import whole
from dreamda_aug.generation.sampler import in_turn
from dreamda_aug.method.seeding import SOURCE, seeded_normal
from dreamda_aug.models import DiffusionModel
from dreamda_aug.models.conditioning import Condition


class DiffusionClassifier(nn.Module):
    """Labels images by a conditional diffusion model's denoising error, without any training.

    All classes are compared with the same noise at the same noise levels. Classes that fall behind
    are dropped after the first stage, which saves most of the denoiser's rows.

    As a labeler for AMST: ``SingleHeadLabeler(DiffusionClassifier(model, conditions))``.

    Args:
        model: conditioned on classes or on text.
        conditions: the condition of each class, in label order: class numbers, or prompts.
        stages: pairs (noise levels tried so far, classes kept afterwards); the first rises, the
            second falls, and the last number of classes is not used.
        batch_size: denoiser rows per call.
        rng_seed: of the noise.

    Attributes:
        temperature: divides errors into logits; see `fit_temperature`.

    Raises:
        ValueError: fewer than two conditions, or stages that do not narrow down.

    Source: Li et al. 2023, arXiv:2303.16203, algorithms 1 and 2; the temperature is ours.
    """

    def __init__(
        self, model: DiffusionModel, conditions: Sequence[Condition], *,
        stages: Sequence[tuple[int, int]] = ((8, 3), (32, 1)), batch_size: int = 64,
        rng_seed: int = 0,
    ) -> None:
        super().__init__()
        if len(conditions) < 2:
            raise ValueError(f"conditions must be two or more, got {len(conditions)}.")
        levels, kept = ([whole("stages", stage[i], 1) for stage in stages] for i in (0, 1))
        if not stages or levels != sorted(set(levels)) or kept != sorted(kept, reverse=True):
            raise ValueError(
                f"stages must try more noise levels on fewer classes each time, got {stages!r}.")
        self.model, self.conditions = model, list(conditions)
        self.stages = tuple(zip(levels, kept, strict=True))
        self.batch_size = whole("batch_size", batch_size, 1)
        self.rng_seed = whole("rng_seed", rng_seed, 0)
        self.temperature = 1.0

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) float32 of images (B, C, H, W) in [0, 1], of the model's size."""
        with in_turn(self.model):
            mean, alive = self._errors(self.model.encode(images))
        # classes that were given up stay behind all others
        worst = mean.masked_fill(~alive, -math.inf).amax(1, keepdim=True)
        mean = torch.where(alive, mean, torch.maximum(mean, worst))
        return (-mean / self.temperature).to(images.device)

    def _errors(self, x_0: Tensor) -> tuple[Tensor, Tensor]:
        """Mean error under each class, and which classes were not given up; (B, classes)."""
        levels, done = self.stages[-1][0], 0
        schedule = self.model.schedule(levels, 1.0)
        # neighbours in this order lie far apart, so that every stage sees all noise levels
        order = sorted(range(levels), key=lambda level: level * (math.sqrt(5) - 1) / 2 % 1)
        seed = torch.tensor([self.rng_seed], device=x_0.device)
        errors = x_0.new_zeros(len(x_0), len(self.conditions))
        counts = torch.zeros_like(errors)
        alive = torch.ones_like(errors, dtype=torch.bool)
        for count, keep in self.stages:
            for call, level in enumerate(order[done:count], done):
                noise = seeded_normal(seed, call, SOURCE, tuple(x_0.shape[1:]))
                x_t = schedule.add_noise(x_0, noise, level)
                for part in alive.nonzero().split(self.batch_size):
                    image, of_class = part.unbind(1)
                    condition = self.model.embed(
                        [self.conditions[number] for number in of_class.tolist()])
                    output = self.model.predict(
                        schedule.model_input(x_t[image], level), schedule.timesteps[level],
                        condition)
                    _, eps = schedule.predictions(output, x_t[image], level, clip=False)
                    errors[image, of_class] += (eps - noise).square().flatten(1).mean(1)
                counts += alive
            done = count
            if count != levels:
                mean = (errors / counts).masked_fill(~alive, math.inf)
                best = mean.topk(min(keep, mean.shape[1]), dim=1, largest=False).indices
                alive &= torch.zeros_like(alive).scatter_(1, best, True)
        return errors / counts, alive

    def fit_temperature(self, images: Tensor, targets: Tensor) -> float:
        """Set and return the temperature under which labeled images are most likely.

        Args:
            images: (N, C, H, W) in [0, 1].
            targets: their classes, (N,) int64.
        """
        self.temperature = 1.0
        logits = self(images).cpu()
        choices = torch.logspace(-5, 1, 61)
        losses = torch.stack([F.cross_entropy(logits / t, targets.cpu()) for t in choices])
        self.temperature = float(choices[losses.argmin()])
        return self.temperature
