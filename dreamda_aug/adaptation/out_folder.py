"""The folder that a training writes to."""

from pathlib import Path
from typing import Any

from dreamda_aug.errors import AdaptationError


def check_out(folder: Path, source: Any, own: set[str]) -> None:
    """Refuse a folder that holds other files, or lies among the images.

    Args:
        folder: the folder; it may not exist yet.
        source: the images.
        own: names of the files that this kind of training writes.

    Raises:
        AdaptationError: it holds other files.
        ValueError: it is a file, or lies in the images' folder.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out must name a folder, got the file {folder}.")
    others = [] if not folder.exists() else sorted(
        path.name for path in folder.iterdir()
        if path.name not in own and not path.name.startswith("."))
    if others:
        raise AdaptationError(
            f"{folder} holds other files, such as {others[0]!r}; choose a folder of its own.")
    if isinstance(source, str | Path) and Path(source).is_dir():
        inside = Path(source).resolve()
        if folder.resolve().is_relative_to(inside):
            raise ValueError(f"out must lie outside the images' folder {inside}, got {folder}.")
