"""The state of a training in one file, replaced atomically."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dreamda_aug.errors import AdaptationError
from dreamda_aug.files import parse_json, write_atomically

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class Progress:
    """How far training is, and what was measured.

    Attributes:
        step: optimizer steps done.
        best_step: after which the held-out loss was lowest; 0 is before the first.
        best_loss: that loss.
        stale: measurements since then.
        history: after which step, training loss since the last measurement, held-out loss.
        before: held-out loss of each image under the model before any training.
        measured: held-out loss of each image at each entry of ``history``.
        seconds: of training so far.
        scaler: state of the gradient scaler; empty without one.
    """

    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    stale: int = 0
    history: list[tuple[int, float | None, float]] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    measured: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)

    def add(self, losses: list[float], training_loss: float | None) -> bool:
        """Record a measurement; True if it is the best so far.

        Args:
            losses: held-out loss of each image.
            training_loss: mean since the last measurement; None before training.
        """
        mean = sum(losses) / len(losses)
        self.history.append((self.step, training_loss, mean))
        self.measured.append(losses)
        if mean < self.best_loss:
            self.best_loss, self.best_step, self.stale = mean, self.step, 0
            return True
        self.stale += 1
        return False


@dataclass(frozen=True)
class Checkpoint:
    """Everything that training goes on from.

    Attributes:
        progress: see there.
        now: what is trained, by name.
        best: the same after the best step.
        moments: AdamW's ``exp_avg`` and ``exp_avg_sq`` of each, by ``NAME/KIND``.
    """

    progress: Progress
    now: dict[str, Tensor]
    best: dict[str, Tensor]
    moments: dict[str, Tensor]


def save_checkpoint(folder: Path, identity: dict[str, Any], state: Checkpoint) -> None:
    """Write a checkpoint as a whole or not at all.

    Args:
        folder: of the adaptation.
        identity: what must be the same for training to go on.
        state: what to save.
    """
    tensors = {f"{part}:{name}": tensor for part, named in (
        ("now", state.now), ("best", state.best), ("moments", state.moments),
    ) for name, tensor in named.items()}
    facts = {"identity": json.dumps(identity), "progress": json.dumps(asdict(state.progress))}
    write_atomically(folder / CHECKPOINT, safetensors.torch.save(tensors, facts))


def load_checkpoint(folder: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint of a folder, or None where there is none.

    Raises:
        AdaptationError: it is damaged, or of another adaptation.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}, "moments": {}}
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            for key in file.keys():
                part, _, name = key.partition(":")
                parts[part][name] = file.get_tensor(key)
        begun = parse_json(facts["identity"], str(path))
        progress = Progress(**parse_json(facts["progress"], str(path)))
    except (safetensors.SafetensorError, OSError, KeyError, TypeError) as error:
        raise AdaptationError(
            f"{path}: expected a checkpoint ({error}); delete it to begin anew.") from error
    check_same(folder, begun, identity)
    progress.history = [tuple(entry) for entry in progress.history]
    return Checkpoint(progress, **parts)


def check_same(folder: Path, begun: dict[str, Any], identity: dict[str, Any]) -> None:
    """Refuse to go on with other settings, images or another model.

    Raises:
        AdaptationError: something differs; the message says what.
    """
    now = json.loads(json.dumps(identity))
    flat_begun, flat_now = _flat(begun), _flat(now)
    names = [name for name in sorted(flat_begun.keys() | flat_now.keys())
             if flat_begun.get(name) != flat_now.get(name)]
    if names:
        changes = ", ".join(f"{name} was {flat_begun.get(name)!r} and is {flat_now.get(name)!r}"
                            for name in names[:4])
        raise AdaptationError(
            f"{folder} was begun with other settings: {changes}. Use the old ones, "
            "another --out, or delete the folder.")


def moments_of(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """AdamW's running means on the CPU, by ``NAME/KIND``; empty before the first step."""
    found: dict[str, Tensor] = {}
    for name, parameter in zip(names, optimizer.param_groups[0]["params"], strict=True):
        state = optimizer.state.get(parameter, {})
        for kind in ("exp_avg", "exp_avg_sq", "step"):
            if kind in state:
                found[f"{name}/{kind}"] = torch.as_tensor(state[kind]).cpu().contiguous()
    return found


def put_moments(
    optimizer: torch.optim.Optimizer, names: list[str], moments: dict[str, Tensor]
) -> None:
    """Set what `moments_of` gave."""
    for name, parameter in zip(names, optimizer.param_groups[0]["params"], strict=True):
        if f"{name}/step" in moments:
            optimizer.state[parameter] = {
                "step": moments[f"{name}/step"].clone(),
                **{kind: moments[f"{name}/{kind}"].to(parameter)
                   for kind in ("exp_avg", "exp_avg_sq")}}


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return found
