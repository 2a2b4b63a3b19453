"""Randomness of a self-training run: one seed per epoch and role, the rest left alone."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def epoch_seed(rng_seed: int, epoch: int, role: str) -> int:
    """A seed in [0, 2⁵⁶) for one role, such as ``"batches"``, in one epoch."""
    text = f"{rng_seed}/{epoch}/{role}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generators (of the CPU and ``device``), seeded inside, restored afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
