"""What noise at the hook costs."""

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.families import checks
from dreamda_aug.method.perturbation import BottleneckNoise
from dreamda_aug.models.transformer import TransformerModel


class HookCost(NamedTuple):
    """Processor time of one step of one row, on one thread; the least of several.

    Attributes:
        step_ms: of a step without noise, in milliseconds.
        hook_ms: of drawing the noise, and scaling and adding it.
    """

    step_ms: float
    hook_ms: float


class _Timed:
    """`BottleneckNoise`, and how long each call took.

    The difference of two steps, with noise and without, would drown in what else the machine does.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, h: Tensor, **arguments: Any) -> Tensor:
        start = time.process_time()
        made = BottleneckNoise()(h, **arguments)
        self.seconds.append(time.process_time() - start)
        return made


@torch.no_grad()
def hook_cost(model: TransformerModel, repetitions: int = 20) -> HookCost:
    """Run a few steps with noise; the noise is timed within them."""
    x = model.encode(torch.rand(1, 3, *model.image_size))
    t, condition = torch.tensor(500.0), model.embed([checks.told(model)])
    noise, steps = _Timed(), []
    with model.hook.perturbing(
            noise, None, 0, seeds=torch.tensor([1]), step=torch.tensor(0), scale=torch.ones(1),
            unconditional=torch.zeros(1, dtype=torch.bool)):
        for _ in range(repetitions):
            start = time.process_time()
            model.predict(x, t, condition)
            steps.append(time.process_time() - start - noise.seconds[-1])
    return HookCost(1000 * min(steps), 1000 * min(noise.seconds))
