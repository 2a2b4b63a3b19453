"""Writing and reading the state of a self-training run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch

FORMAT = 1


def write_checkpoint(path: str | os.PathLike, settings: dict, state: dict) -> None:
    """Replace ``path`` in one go: at any moment it holds a whole checkpoint, old or new."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    torch.save({"format": FORMAT, "settings": settings, "state": state}, partial)
    os.replace(partial, path)


def read_checkpoint(path: str | os.PathLike, settings: dict) -> dict:
    """The state in ``path``; only tensors and plain values are read, on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, damaged, or written with other settings.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: not a SelfTraining checkpoint, or damaged.") from error
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != FORMAT:
        raise ValueError(f"{path}: expected a checkpoint of format {FORMAT}, found {found}.")
    written = content["settings"]
    different = [name for name in settings if settings[name] != written.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"{path}: written with other settings: {', '.join(different)}; {name}: expected "
            f"{settings[name]!r}, found {written.get(name)!r}."
        )
    return content["state"]
