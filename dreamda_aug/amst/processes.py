"""A wrapper in several processes: what ``SelfTraining`` does when it gets one from torch's DDP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dreamda_aug.amst.wrapper import AMSTWrapper


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        count: number of processes.
        rank: number of this one, from 0.
        parallel: the module that averages gradients; None in a run of one process without DDP.
    """

    count: int = 1
    rank: int = 0
    parallel: DistributedDataParallel | None = None

    def role(self, name: str) -> str:
        """The name of a random stream of this process alone; process 0 keeps the plain name."""
        return f"{name}/{self.rank}" if self.rank else name

    def share_buffers(self) -> None:
        """Give every process the buffers of process 0, so that all of them label alike.

        Gradients are averaged after every step, but BatchNorm's statistics are not: they differ
        until DDP copies them at the start of the next step.
        """
        if self.parallel is None or self.count == 1:
            return
        for buffer in self.parallel.module.buffers():
            torch.distributed.broadcast(buffer, group=self.parallel.process_group, group_src=0)


def find_wrapper(module: nn.Module) -> tuple[AMSTWrapper, Processes]:
    """The wrapper inside a module that was distributed, compiled, both or neither.

    Raises:
        TypeError: there is no ``AMSTWrapper`` inside.
        ValueError: DDP would wait for the gradients of heads that a stage leaves out.
    """
    inner: Any = module
    processes = Processes()
    while not isinstance(inner, AMSTWrapper):
        if isinstance(inner, DistributedDataParallel):
            if not inner.find_unused_parameters or inner.static_graph:
                raise ValueError(
                    "each stage leaves some heads out, and DistributedDataParallel waits for "
                    "their gradients; write DistributedDataParallel(wrapper, "
                    "find_unused_parameters=True), without static_graph."
                )
            group = inner.process_group
            processes = Processes(group.size(), group.rank(), inner)
            inner = inner.module
        elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner._orig_mod  # torch.compile's name for the module that it compiled
        else:
            raise TypeError(
                "wrapper must be an AMSTWrapper, or one inside DistributedDataParallel or "
                f"torch.compile, got {type(module).__name__}."
            )
    return inner, processes
