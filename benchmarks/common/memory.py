"""Peak memory of this process."""

from pathlib import Path

import torch

from dreamda_aug.adaptation.loop import peak_memory


def resident_peak() -> int:
    """The most memory that the process had at once, in bytes, since it began or since the reset."""
    return peak_memory(torch.device("cpu"))


def resident_now() -> int:
    """The memory that the process has now, in bytes; where the system does not say, its peak."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) * 1024
    return resident_peak()


def reset_resident_peak() -> None:
    """Begin a new peak, where the system allows it; else it counts from the process's start."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
