"""Adaptations on disk: what training on a user's images changed of a model, and putting it back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamda_aug.errors import ModelError, StorageError
from dreamda_aug.files import parse_json
from dreamda_aug.models.fingerprints import digest_of

FORMAT = "dreamda-adaptation"
FORMAT_VERSION = 1
CARD = "adaptation.json"
# diffusers' own name and layout, so that any diffusers pipeline can load it
LORA = "pytorch_lora_weights.safetensors"
CLASS_ROWS = "class_embedding.safetensors"
_PREFIX = "unet."

# A base in another precision is compared by so many tensors, and entries of each.
_SAMPLED_TENSORS, _SAMPLED_ENTRIES = 64, 4
# bfloat16 keeps 8 bits, so that a rounded weight is off by 0.4 % at most.
_ROUNDING = 0.01


@dataclass(frozen=True)
class Conditions:
    """What an adapted model is conditioned on.

    Attributes:
        class_names: names of its classes, in the order of its class embedding, or None.
        null_class: the class that stands for "no class", or None.
    """

    class_names: Sequence[str] | None = None
    null_class: int | None = None


def read_card(folder: Path) -> dict[str, Any]:
    """The card of an adaptation's folder.

    Raises:
        FileNotFoundError: the folder has none.
        StorageError: it is damaged, or from another version of the format.
    """
    path = folder / CARD
    card = parse_json(path.read_bytes(), str(path))
    found = card.get("format"), card.get("format_version")
    if found != (FORMAT, FORMAT_VERSION):
        raise StorageError(f"{path}: expected {FORMAT} {FORMAT_VERSION}, found {found}.")
    missing = {"base", "classes", "loss", "identity"} - card.keys()
    if missing or not isinstance(card["base"], dict) or not isinstance(card["classes"], dict):
        raise StorageError(f"{path}: damaged, {', '.join(sorted(missing)) or 'base'} is missing.")
    return card


def base_identity(denoiser: nn.Module) -> dict[str, Any]:
    """What tells one base model from another, also in another precision.

    Args:
        denoiser: the model before any change.
    """
    tensors = dict(denoiser.state_dict())
    return {"class": type(denoiser).__name__, "weights": digest_of(tensors),
            "dtype": _dtype_of(tensors), "sample": _sample(tensors)}


def check_base(expected: Mapping[str, Any], denoiser: nn.Module, name: str, where: str) -> None:
    """Refuse a model other than the one that was adapted; another precision of it is fine.

    Raises:
        ModelError: it is another model.
    """
    found = base_identity(denoiser)
    same = expected.get("class") == found["class"]
    if expected.get("dtype") == found["dtype"]:
        same = same and expected.get("weights") == found["weights"]
    else:
        same = same and _alike(expected.get("sample"), found["sample"])
    if not same:
        raise ModelError(
            f"{where} was adapted from {expected.get('name')!r} ({expected.get('class')}, weights "
            f"{str(expected.get('weights'))[:12]}), found {name!r} ({found['class']}, weights "
            f"{found['weights'][:12]}): another model. Load it with the model that it was "
            "adapted from."
        )


def apply_lora(
    pipeline: Any, name: str, lora: str | Path, before: Conditions
) -> Conditions:
    """Put LoRA weights into a pipeline for good: they are added to the weights of its layers.

    Args:
        pipeline: a diffusers pipeline of the caller's own; it is changed.
        name: of the model, for messages.
        lora: a folder that `dreamda_aug.adapt` wrote; or LoRA weights as diffusers knows them: a
            ``.safetensors`` file, a folder or a hub id.
        before: what the model is conditioned on without them.

    Returns:
        What it is conditioned on now.

    Raises:
        ModelError: the weights are no LoRA weights, or belong to another model.
        ImportError: LoRA weights of others need peft.
    """
    folder = Path(lora)
    if not (folder / CARD).is_file():
        _apply_foreign(pipeline, name, lora)
        return before
    card = read_card(folder)
    denoiser = pipeline.unet
    check_base(card["base"], denoiser, name, str(folder))
    add_lora_weights(denoiser, _read(folder / LORA))
    classes = card["classes"]
    if (folder / CLASS_ROWS).exists():
        put_class_rows(denoiser, _read(folder / CLASS_ROWS)["rows"])
        before = Conditions(classes.get("names"), classes.get("null_class"))
    return before


@torch.no_grad()
def add_lora_weights(denoiser: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Add B·A to the weight of every layer that has LoRA weights.

    Args:
        denoiser: the model; it is changed.
        tensors: ``unet.LAYER.lora_A.weight`` (r, in, ...) and ``unet.LAYER.lora_B.weight``
            (out, r, ...), the scale in them already.

    Raises:
        ModelError: a layer is not there, or has another shape.

    Source: Hu et al. 2021, arXiv:2106.09685, eq. 3; convolutions as in peft.
    """
    layers = dict(denoiser.named_modules())
    for name, down in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        layer_name = name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        up = tensors.get(name.replace(".lora_A.", ".lora_B."))
        weight = getattr(layers.get(layer_name), "weight", None)
        if up is None or weight is None:
            raise ModelError(f"LoRA weights for {layer_name!r} do not fit this model.")
        added = up.float().flatten(1) @ down.float().flatten(1)
        if added.numel() != weight.numel() or len(up) != len(weight):
            raise ModelError(
                f"LoRA weights for {layer_name!r} have the shape {tuple(added.shape)}, and the "
                f"layer {tuple(weight.shape)}."
            )
        added = added.reshape(weight.shape).to(weight.device)
        weight.copy_(weight.float() + added)


def lora_file(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LoRA tensors, named as in the denoiser, under the names that diffusers gives them."""
    return {_PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}


def put_class_rows(denoiser: Any, rows: Tensor) -> None:
    """Give a class-conditional denoiser another class embedding, (classes, D)."""
    old = denoiser.class_embedding.weight
    denoiser.class_embedding = nn.Embedding.from_pretrained(rows.to(old.device, old.dtype))
    denoiser.register_to_config(num_class_embeds=len(rows))


def _apply_foreign(pipeline: Any, name: str, lora: str | Path) -> None:
    """LoRA weights that somebody else made, through diffusers."""
    if not hasattr(pipeline, "load_lora_weights"):
        raise ModelError(
            f"lora must be a folder that dreamda adapt wrote, with {CARD}, for {name} "
            f"({type(pipeline).__name__}), which loads no others; got {str(lora)!r}."
        )
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "LoRA weights need an extra package: pip install 'dreamda_aug[adapt]'."
        ) from error
    path = Path(lora)
    place: dict[str, Any] = {"pretrained_model_name_or_path_or_dict": str(lora)}
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelError(f"{path}: only .safetensors files are opened: nothing is unpickled")
        place = {"pretrained_model_name_or_path_or_dict": str(path.parent),
                 "weight_name": path.name}
    try:
        pipeline.load_lora_weights(**place, use_safetensors=True)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    # foreign weights fail in many ways inside diffusers and peft, and each is about them
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError,
            safetensors.SafetensorError) as error:
        raise ModelError(
            f"could not load {str(lora)!r} as LoRA weights for {name}: {error}") from error


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: expected safetensors ({error}).") from error


def _dtype_of(tensors: Mapping[str, Tensor]) -> str:
    kinds = {str(tensor.dtype) for tensor in tensors.values() if tensor.is_floating_point()}
    return ", ".join(sorted(kinds))


def _sample(tensors: Mapping[str, Tensor]) -> list[float]:
    """A few entries of tensors spread over the model, with 6 digits."""
    chosen = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point())
    stride = max(1, len(chosen) // _SAMPLED_TENSORS)
    found = []
    for name in chosen[::stride][:_SAMPLED_TENSORS]:
        flat = tensors[name].detach().reshape(-1)
        step = max(1, len(flat) // _SAMPLED_ENTRIES)
        found += flat[::step][:_SAMPLED_ENTRIES].double().tolist()
    return [float(f"{value:.6g}") for value in found]


def _alike(expected: Any, found: list[float]) -> bool:
    """Whether two samples differ by rounding alone."""
    if not isinstance(expected, list) or len(expected) != len(found):
        return False
    try:
        first = torch.tensor(expected, dtype=torch.float64)
    except (TypeError, ValueError):
        return False
    second = torch.tensor(found, dtype=torch.float64)
    return bool(torch.allclose(first, second, rtol=_ROUNDING, atol=1e-6))


def card_text(card: Mapping[str, Any]) -> bytes:
    """A card as it lies on disk."""
    return (json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **card}, indent=2)
            + "\n").encode()
