"""The folder of a training: what may lie in it, its checkpoint, and its card at the end."""

import importlib.metadata
import json
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dreamda_aug.errors import AdaptationError
from dreamda_aug.files import parse_json, regular_file, write_atomically
from dreamda_aug.machine_paths import path_name
from dreamda_aug.models.adapted import read_card

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class Progress:
    """How far training is, and what was measured."""

    step: int = 0  # optimizer steps done
    # step, mean training loss since the last measurement, held-out loss
    history: list[tuple[int, float | None, float]] = field(default_factory=list)
    # held-out loss of each image at each entry of ``history``; the first one is before training
    measured: list[list[float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)  # in training since the last measurement
    seconds: float = 0.0  # of training so far
    scaler: dict[str, Any] = field(default_factory=dict)  # the gradient scaler's state, if any

    @property
    def best(self) -> int:
        """Number of the measurement with the lowest held-out loss, the first of equals."""
        return min(range(len(self.history)), key=lambda number: self.history[number][2], default=0)


# The tensors of a checkpoint, by part and name: what is trained as it is "now" and was at its
# "best", and AdamW's "moments", by ``NAME/KIND``.
Tensors = dict[str, dict[str, Tensor]]


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors, on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in tensors.items()}


@torch.no_grad()
def restore(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Set tensors to what `copied` returned, in place."""
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


def check_out(folder: Path, source: Any, own: Set[str]) -> None:
    """Refuse a file, a folder that holds other files than ``own``, or one among the images."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out must name a folder, got the file {folder}.")
    for name in sorted(path.name for path in folder.glob("[!.]*")):
        if name not in own:
            raise AdaptationError(
                f"{folder} holds other files, such as {name!r}; choose a folder of its own.")
    if isinstance(source, str | Path) and Path(source).is_dir():
        inside = Path(source).resolve()
        if folder.resolve().is_relative_to(inside):
            raise ValueError(f"out must lie outside the images' folder {inside}, got {folder}.")


def check_same(folder: Path, begun: dict[str, Any], identity: dict[str, Any]) -> None:
    """Refuse to resume with other settings, images or another model, and name what differs."""
    now = json.loads(json.dumps(identity))
    changes = [f"{name} was {begun.get(name)!r} and is {now.get(name)!r}"
               for name in sorted(begun.keys() | now.keys()) if begun.get(name) != now.get(name)]
    if changes:
        raise AdaptationError(
            f"{folder} was begun with other settings: {', '.join(changes[:4])}. Use the old ones, "
            "another --out, or delete the folder.")


def is_finished(card: Path, kind: str, identity: dict[str, Any]) -> bool:
    """Whether there is the card of a finished training; that of another one is refused."""
    if card.exists():
        check_same(card.parent, read_card(card, kind)["identity"], identity)
    return card.exists()


def finish(card: Path, kind: str, content: Mapping[str, Any], *libraries: str) -> None:
    """Write the card, which says that all other files are whole, and delete the checkpoint."""
    versions = {name: importlib.metadata.version(name) for name in libraries}
    text = json.dumps(
        {"format": kind, "format_version": 1, **content, "versions": versions}, indent=2)
    write_atomically(card, f"{text}\n".encode())
    card.with_name(CHECKPOINT).unlink(missing_ok=True)


def save_checkpoint(
    folder: Path, identity: dict[str, Any], progress: Progress, tensors: Tensors
) -> None:
    """Write a checkpoint as a whole or not at all; ``identity`` must be the same to resume."""
    flat = {f"{part}:{name}": tensor for part, named in tensors.items()
            for name, tensor in named.items()}
    metadata = {"identity": json.dumps(identity), "progress": json.dumps(asdict(progress))}
    write_atomically(folder / CHECKPOINT, safetensors.torch.save(flat, metadata))


def load_checkpoint(folder: Path, identity: dict[str, Any]) -> tuple[Progress, Tensors] | None:
    """What `save_checkpoint` wrote, or None where there is nothing.

    Raises:
        AdaptationError: it is damaged, or of another training.
        StorageError: it is no regular file.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    parts: Tensors = {"now": {}, "best": {}, "moments": {}}
    try:
        with safetensors.safe_open(regular_file(path), "pt") as file:
            metadata = file.metadata() or {}
            for key in file.keys():
                part, _, name = key.partition(":")
                parts[part][name] = file.get_tensor(key)
        begun = parse_json(metadata["identity"], str(path))
        found = parse_json(metadata["progress"], str(path))
        progress = Progress(**{each.name: found[each.name] for each in fields(Progress)
                               if each.name in found})
    except (safetensors.SafetensorError, OSError, KeyError, TypeError) as error:
        raise AdaptationError(
            f"{path}: expected a checkpoint ({error}); delete it to begin anew.") from error
    check_same(folder, begun, identity)
    return progress, parts


def data_name(source: Any) -> str:
    """What a source is called in a card, without a path of this machine."""
    named = isinstance(source, str | Path)
    return path_name(str(source)) if named else type(source).__name__
