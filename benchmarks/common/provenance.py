"""Where a figure comes from: the machine and the commit."""

import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

import torch


def machine(device: torch.device | str) -> str:
    """The GPU's name; or the processor, its cores, and how many threads torch uses."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if "model name" in line), model)
    return f"{os.cpu_count()} CPU cores ({model}), {torch.get_num_threads()} thread(s)"


def machine_and_torch(device: torch.device | str) -> str:
    """`machine`, and the version of torch."""
    return f"{machine(device)}, torch {torch.__version__}"


@lru_cache(maxsize=1)
def commit() -> str:
    """The short hash of the checkout, ``+`` if tracked files are changed."""
    answer = subprocess.run(["git", "describe", "--always", "--dirty=+", "--exclude=*"],
                            capture_output=True, text=True, check=False,
                            cwd=Path(__file__).parent)  # fmt: skip
    return answer.stdout.strip() or "unknown"
