"""Arms in turn, round after round, so that what slows the machine down slows all of them."""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.common.measurement import DenoiserFlops, measure
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
    arms: Sequence[Arm], rounds: int, device: torch.device, flops: DenoiserFlops, peak_rate: float,
) -> Iterator[list[dict[str, Any]]]:
    """Time all arms.

    Args:
        arms: what is timed; every second round goes through them backwards.
        rounds: how often.
        device: where they run.
        flops: of a row of the denoiser.
        peak_rate: floating-point operations per second of a large matrix product there.

    Yields:
        After each round, a row for each arm, as JSON: times per image of every round so far, their
        median, rows, the denoiser's operations, images per second.
    """
    rows = [_warm(arm, flops) for arm in arms]
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
        yield [_summary(arm, row, peak_rate) for arm, row in order]


def _warm(arm: Arm, flops: DenoiserFlops) -> dict[str, Any]:
    """Run an arm twice; count its rows and its operations."""
    arm.run()  # fills the cache, and prepares kernels
    before = arm.rows()
    arm.run()
    encoder, decoder = ((now - then) / arm.samples
                        for now, then in zip(arm.rows(), before, strict=True))
    return {
        "arm": arm.name, "batch_size": arm.batch_size, "replicas": arm.replicas,
        "samples": arm.samples, "encoder_rows": encoder, "decoder_rows": decoder,
        "flop": encoder * flops.encoder + decoder * flops.decoder,
        "times": [], "peak_bytes": 0, "joules": 0.0,
    }  # fmt: skip


def _summary(arm: Arm, row: dict[str, Any], peak_rate: float) -> dict[str, Any]:
    found = {name: value for name, value in row.items() if name != "joules"}
    seconds = median(row["times"])
    return found | {
        "times": list(row["times"]), "seconds": seconds, "images_per_second": 1 / seconds,
        "share_of_matrix_product_rate": row["flop"] / seconds / peak_rate,
        "images_per_kwh": per_kwh(arm.samples * len(row["times"]), row["joules"]),
    }
