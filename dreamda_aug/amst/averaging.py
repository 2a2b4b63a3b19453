"""An exponential moving average of a module's weights: the teacher of self-training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages the parameters and buffers of a module over its training steps.

    Args:
        module: what is trained.
        decay: share of the old average in each step, in [0, 1); smaller in the first steps, so
            that random weights are soon forgotten.

    Attributes:
        weights: the average, by the names of the module's ``state_dict``.
        steps: updates so far.

    Source: Tarvainen and Valpola 2017 (Mean Teacher), arXiv:1703.01780, with their ramp-up.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay, self.steps = module, decay, 0
        self.weights = {name: value.detach().clone() for name, value in self._values().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's weights as they are now; whole numbers are copied."""
        self.steps += 1
        decay = min(self.decay, 1 - 1 / self.steps)
        for name, value in self._values().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - decay)
            else:
                self.weights[name].copy_(value)

    def restart(self) -> None:
        """Forget everything; the average begins anew at the module's weights."""
        self.load(self._values(), 0)

    def load(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Put another average in its place."""
        self.weights = {name: value.detach().clone() for name, value in weights.items()}
        self.steps = steps

    @torch.no_grad()
    def copy_to_module(self) -> None:
        """Give the module the average; its own weights are lost."""
        for name, value in self._values().items():
            value.copy_(self.weights[name])

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Within it, the module has the average; afterwards its own weights again."""
        own = {name: value.detach().clone() for name, value in self._values().items()}
        self.copy_to_module()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self._values().items():
                    value.copy_(own[name])

    def _values(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())
