"""Arms in turn, round after round, so that what slows the machine down slows all of them."""

import contextlib
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common.measurement import measure
from benchmarks.speed.arms import Arm
from benchmarks.speed.energy import energy_meter, per_kwh


class Spread(NamedTuple):
    """Ratios of times that were measured in the same round.

    Attributes:
        median: of all rounds.
        low: the smallest.
        high: the largest.
    """

    median: float
    low: float
    high: float


def spread(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The ratios of two rows of times, round by round."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return Spread(median(ratios), min(ratios), max(ratios))


def run_rounds(
    arms: Sequence[Arm], rounds: int, device: torch.device, peak_rate: float,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Time all arms.

    Args:
        arms: what is timed; every second round goes through them backwards.
        rounds: how often.
        device: where they run.
        peak_rate: floating-point operations per second of a large matrix product there.
        say: is told what was measured.

    Returns:
        A row for each arm, as JSON: times per image of every round, their median, rows, operations
        and images per second.
    """
    rows = [_warm(arm, device) for arm in arms]
    meter = energy_meter(device)
    for number in range(rounds):
        order = list(zip(arms, rows, strict=True))
        for arm, row in order if number % 2 == 0 else reversed(order):
            joules = meter() if meter else 0.0
            measured = measure(arm.run, device)
            row["times"].append(measured.seconds / arm.samples)
            row["peak_bytes"] = max(row["peak_bytes"], measured.peak_bytes)
            if meter:
                row["joules"] += meter() - joules
        say(f"round {number + 1} of {rounds}")
    for arm, row in zip(arms, rows, strict=True):
        row["seconds"] = median(row["times"])
        row["images_per_second"] = 1 / row["seconds"]
        row["share_of_matrix_product_rate"] = row["flop"] / row["seconds"] / peak_rate
        row["images_per_kwh"] = per_kwh(arm.samples * rounds, row.pop("joules"))
    return rows


def _warm(arm: Arm, device: torch.device) -> dict[str, Any]:
    """Run an arm twice; count its rows and its operations."""
    arm.run()  # fills the cache, and prepares kernels
    # fused attention on the CPU is not in torch's table of formulas
    plain = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
    before = arm.rows()
    with plain, FlopCounterMode(display=False) as counter:
        arm.run()
    encoder, decoder = (now - then for now, then in zip(arm.rows(), before, strict=True))
    return {
        "arm": arm.name, "batch_size": arm.batch_size, "replicas": arm.replicas,
        "samples": arm.samples, "encoder_rows": encoder / arm.samples,
        "decoder_rows": decoder / arm.samples, "flop": counter.get_total_flops() / arm.samples,
        "times": [], "peak_bytes": 0, "joules": 0.0,
    }  # fmt: skip
