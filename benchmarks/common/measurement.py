"""Time, memory, and what the machine could do at best."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common.memory import reset_resident_peak
from dreamda_aug.adaptation.loop import peak_memory
from dreamda_aug.models import DiffusionModel


class Measured(NamedTuple):
    """A call's result, its time in seconds, and the peak memory in bytes.

    With one thread on the CPU it is processor time, which other work on the machine does not
    stretch; else what the clock says. On CUDA the peak is what torch allocated; on the CPU,
    resident memory of the whole process.
    """

    result: Any
    seconds: float
    peak_bytes: int


def measure(function: Callable[[], Any], device: torch.device) -> Measured:
    """Call a function once."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_resident_peak()
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    start = clock()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = clock() - start
    return Measured(result, seconds, peak_memory(device))


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of one large matrix product, the best of several."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)
    times = [measure(lambda: [torch.mm(a, b) for _ in range(5)], device).seconds for _ in range(5)]
    return 5 * 2 * side**3 / min(times)


class DenoiserFlops(NamedTuple):
    """Floating-point operations of one batch row: down to the bottleneck's end, and up again."""

    encoder: int
    decoder: int


@torch.no_grad()
def count_flops(model: DiffusionModel) -> DenoiserFlops:
    """Count one call with one decoder row, and one with two."""
    latents = model.encode(torch.zeros(1, model.channels, *model.image_size))
    condition = model.embed([0 if model.condition_kind == "class" else None])
    t = model.schedule(1, 1.0).timesteps[0]

    def count(branches: int) -> int:
        rows = torch.zeros(branches, dtype=torch.int64, device=model.device)
        # the fused attention of some devices is not in torch's table of formulas
        with (model.hook.perturbing(None, rows, 0), sdpa_kernel(SDPBackend.MATH),
              FlopCounterMode(display=False) as counter):
            model.predict(latents, t, condition)
        return counter.get_total_flops()

    one, two = count(1), count(2)
    return DenoiserFlops(encoder=2 * one - two, decoder=two - one)
