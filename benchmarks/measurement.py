"""Time, memory, and what the machine could do at best."""

import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


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
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        _reset_resident_peak()
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    start = clock()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = clock() - start
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident_peak()
    return Measured(result, seconds, peak)


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of one large matrix product, the best of several."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    torch.mm(a, b)
    times = [measure(lambda: [torch.mm(a, b) for _ in range(5)], device).seconds for _ in range(5)]
    return 5 * 2 * side**3 / min(times)


class UnetFlops(NamedTuple):
    """Floating-point operations of one batch row: down to the bottleneck's end, and up again."""

    encoder: int
    decoder: int


@torch.no_grad()
def count_flops(backbone) -> UnetFlops:
    latents = backbone.encode(torch.zeros(1, backbone.channels, *backbone.image_size))
    condition = backbone.embed([0 if backbone.condition_kind == "class" else None])
    t = backbone.schedule(1, 1.0).timesteps[0]

    def count(branches: int) -> int:
        rows = torch.zeros(branches, dtype=torch.int64, device=backbone.device)
        backbone.tap.set(None, rows, 0, 1)
        try:
            # the fused attention of some devices is not in torch's table of formulas
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                backbone.predict(latents, t, condition)
        finally:
            backbone.tap.clear()
        return counter.get_total_flops()

    one, two = count(1), count(2)
    return UnetFlops(encoder=2 * one - two, decoder=two - one)


def machine(device: torch.device) -> str:
    """What it was measured on, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), model)
    return f"{os.cpu_count()} CPU cores ({model}), {torch.get_num_threads()} thread(s)"


def _reset_resident_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # then it is the peak since the process began


def _resident_peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
