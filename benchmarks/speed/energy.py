"""Energy that a GPU has used, where its driver says so (NVML)."""

from collections.abc import Callable

import torch

_JOULES_PER_KWH = 3.6e6


def energy_meter(device: torch.device) -> Callable[[], float] | None:
    """Reads a counter of joules; None where there is none, or no ``nvidia-ml-py`` to ask it.

    Args:
        device: whose energy.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None  # older than Volta, or not allowed
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000


def per_kwh(images: int, joules: float | None) -> float | None:
    """Images that a kilowatt-hour is good for; None where the energy is not known."""
    return images / joules * _JOULES_PER_KWH if joules else None
