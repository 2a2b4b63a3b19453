"""What a self-training run needs around its steps: seeds, processes, checkpoints."""

import contextlib
import hashlib
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dreamda_aug.amst.wrapper import AMSTWrapper
from dreamda_aug.errors import StorageError
from dreamda_aug.files import atomic_file, regular_file

_FORMAT = 2


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


@dataclass(frozen=True)
class Processes:
    """How many processes train together, this one's number, and what averages their gradients."""

    count: int = 1
    rank: int = 0
    parallel: DistributedDataParallel | None = None

    def role(self, name: str) -> str:
        """The name of a random stream of this process alone; process 0 keeps the plain name."""
        return f"{name}/{self.rank}" if self.rank else name

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the buffers of process 0, so that all of them label alike.

        Gradients are averaged after every step, but BatchNorm's statistics are not: they differ
        until DDP copies them at the start of the next step.
        """
        if self.parallel is not None:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, group=self.parallel.process_group, group_src=0)


def find_wrapper(module: nn.Module) -> tuple[AMSTWrapper, Processes]:
    """The wrapper inside a module that was distributed, compiled, both or neither."""
    inner: Any = module
    processes = Processes()
    while not isinstance(inner, AMSTWrapper):
        if isinstance(inner, DistributedDataParallel):
            if not inner.find_unused_parameters or inner.static_graph:
                raise ValueError(
                    "each stage leaves some heads out, and DistributedDataParallel waits for "
                    "their gradients; write DistributedDataParallel(wrapper, "
                    "find_unused_parameters=True), without static_graph.")
            group = inner.process_group
            processes = Processes(group.size(), group.rank(), inner)
            inner = inner.module
        elif isinstance(getattr(inner, "_orig_mod", None), nn.Module):
            inner = inner._orig_mod  # torch.compile's name for the module that it compiled
        else:
            raise TypeError(
                "wrapper must be an AMSTWrapper, or one inside DistributedDataParallel or "
                f"torch.compile, got {type(module).__name__}.")
    return inner, processes


def write_checkpoint(
    path: str | os.PathLike[str], settings: Mapping[str, object], state: Mapping[str, object]
) -> None:
    """Replace ``path`` at once: at any moment it holds a whole checkpoint, the old or the new."""
    with atomic_file(Path(path)) as file:
        torch.save({"format": _FORMAT, "settings": settings, "state": state}, file)


def read_checkpoint(
    path: str | os.PathLike[str], settings: Mapping[str, object]
) -> dict[str, Any]:
    """The state that ``write_checkpoint`` wrote with equal settings, with tensors on the CPU."""
    expected = f"{path}: expected a checkpoint of format {_FORMAT} that SelfTraining.save wrote"
    content: Any = None
    # torch.save writes a zip archive; of other files torch.load would guess older formats
    if zipfile.is_zipfile(regular_file(os.fspath(path))):
        with contextlib.suppress(RuntimeError, EOFError, ValueError, KeyError,
                                 pickle.UnpicklingError):
            content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise StorageError(f"{expected}, found " + (
            "another kind of file, or a damaged one." if found is None else f"format {found}."))
    written = content["settings"]
    different = [name for name in settings if settings[name] != written.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"{path}: written with other settings: {', '.join(different)}; {name}: expected "
            f"{settings[name]!r}, found {written.get(name)!r}.")
    return dict(content["state"])
