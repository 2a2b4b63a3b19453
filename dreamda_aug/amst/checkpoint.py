"""Writing and reading the state of a self-training run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dreamda_aug.files import atomic_file

FORMAT = 1


def write_checkpoint(
    path: str | os.PathLike[str], settings: Mapping[str, object], state: Mapping[str, object]
) -> None:
    """Replace ``path`` at once: at any moment it holds a whole checkpoint, the old or the new."""
    with atomic_file(Path(path)) as file:
        torch.save({"format": FORMAT, "settings": settings, "state": state}, file)


def read_checkpoint(
    path: str | os.PathLike[str], settings: Mapping[str, object]
) -> dict[str, Any]:
    """The state in ``path``, with its tensors on the CPU; only tensors and plain values are read.

    Args:
        path: a file that ``write_checkpoint`` wrote.
        settings: the settings that the file must have been written with.

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
    # Files of version 0.1 do not name what had no choice then.
    written = {"processes": 1, "head_share": 1.0} | content["settings"]
    different = [name for name in settings if settings[name] != written.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"{path}: written with other settings: {', '.join(different)}; {name}: expected "
            f"{settings[name]!r}, found {written.get(name)!r}."
        )
    state: dict[str, Any] = content["state"]
    return state
