"""Adaptations and other LoRA weights on disk, and adding them to a model."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dreamda_aug.errors import ModelError, StorageError
from dreamda_aug.files import parse_json, read_json, regular_file
from dreamda_aug.models.fingerprints import digest_of, quick_look

FORMAT = "dreamda-adaptation"
CARD = "adaptation.json"
# diffusers' own name and layout, so that any diffusers pipeline can load it
LORA = "pytorch_lora_weights.safetensors"
CLASS_ROWS = "class_embedding.safetensors"
# Broken files fail in many ways inside diffusers and peft, and each is about the files.
UNLOADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
              RuntimeError, ModelError, StorageError, safetensors.SafetensorError, re.error)

# The parts of a pipeline that may have LoRA weights, the denoiser first.
_PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
# The names that peft's ``save_pretrained`` gives its files.
_PEFT, _PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# What diffusers and peft call the matrices of a layer, perhaps with the name of an adapter; some
# trainers add the scale's numerator.
_KEY = re.compile(r"(.+)\.(?:lora_(A|B)(?:\.\w+)?\.weight|(alpha))")
# bfloat16 keeps 8 bits, so that a rounded weight is off by 0.4 % at most.
_ROUNDING = 0.01


def read_card(path: Path, kind: str) -> dict[str, Any]:
    """The card of a finished training; ``kind`` is its format.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it is damaged, or of another format or version.
    """
    card = read_json(path)
    found = card.get("format"), card.get("format_version")
    if found != (kind, 1):
        raise StorageError(f"{path}: expected {kind} 1, found {found}.")
    return card


def base_identity(denoiser: nn.Module) -> dict[str, Any]:
    """What tells one unchanged base model from another; a few entries of tensors spread over the
    model, with 6 digits, do so in another precision."""
    tensors = dict(denoiser.state_dict())
    names = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point())
    sample: list[float] = []
    for name in names[:: max(1, len(names) // 64)][:64]:
        flat = tensors[name].detach().reshape(-1)
        sample += flat[:: max(1, len(flat) // 4)][:4].tolist()
    return {"class": type(denoiser).__name__, "weights": digest_of(tensors),
            "dtype": ", ".join(sorted({str(tensors[name].dtype) for name in names})),
            "sample": [float(f"{value:.6g}") for value in sample]}


def check_base(expected: Mapping[str, Any], denoiser: nn.Module, name: str, where: str) -> None:
    """Raise `ModelError` for a model other than the adapted one; its precision may differ."""
    found = base_identity(denoiser)
    if expected["dtype"] == found["dtype"]:
        same = expected["weights"] == found["weights"]
    else:
        before, now = torch.tensor(expected["sample"]), torch.tensor(found["sample"])
        same = before.shape == now.shape and torch.allclose(before, now, _ROUNDING, 1e-6)
    if expected["class"] != found["class"] or not same:
        raise ModelError(
            f"{where} was adapted from {expected['name']!r} ({expected['class']}, weights "
            f"{expected['weights'][:12]}), found {name!r} ({found['class']}, weights "
            f"{found['weights'][:12]}): another model. Load it with the model that it was "
            "adapted from.")


def apply_lora(
    pipeline: Any, name: str, lora: str | Path
) -> tuple[list[str] | None, int | None] | None:
    """Add LoRA weights (see `ModelSpec`) to the weights of a pipeline's layers.

    Returns:
        Names of the classes that it is conditioned on now, and the null class, or None if it is
        conditioned on the same as before.

    Raises:
        ModelError: the weights are no LoRA weights, belong to another model, or are in a layout
            that diffusers reads only with peft.
    """
    folder = Path(lora)
    try:
        if not (folder / CARD).exists():
            _apply_foreign(pipeline, lora)
            return None
        card = read_card(folder / CARD, FORMAT)
        denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
        check_base(card["base"], denoiser, name, str(folder))
        add_lora_weights({"unet": denoiser}, load_file(regular_file(folder / LORA)))
        if not (folder / CLASS_ROWS).exists():
            return None
        rows = load_file(regular_file(folder / CLASS_ROWS))["rows"].to(denoiser.device)
        width = denoiser.class_embedding.weight.shape[1:]
        if rows.shape[1:] != width or not rows.isfinite().all():
            raise ModelError(f"{CLASS_ROWS} must hold finite rows of {tuple(width)} numbers, found "
                             f"shape {tuple(rows.shape)}")
        denoiser.class_embedding = nn.Embedding.from_pretrained(rows.to(denoiser.dtype))
        denoiser.register_to_config(num_class_embeds=len(rows))
        return card["classes"]["names"], card["classes"]["null_class"]
    except UNLOADABLE as error:
        raise ModelError(
            f"could not load {str(lora)!r} as LoRA weights for {name}: {error}") from error


@torch.no_grad()
def add_lora_weights(
    parts: Mapping[str, nn.Module], tensors: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
) -> None:
    """Add scale · B·A to the weight of every layer that has LoRA weights.

    Args:
        parts: the denoiser, then text encoders, by their names in the pipeline; they are changed.
        tensors: ``LAYER.lora_A.weight`` (r, in, ...) and ``LAYER.lora_B.weight`` (out, r, ...),
            perhaps ``LAYER.alpha``, behind a prefix that all keys of a part share.
        config: peft's configuration, or None for a scale of 1.

    Raises:
        ModelError: a key names no layer, a shape differs, or a value is not finite;
            or only one of the two matrices of a layer is there.

    Source: Hu et al. 2021, arXiv:2106.09685, eq. 3; convolutions and scales as in peft.
    """
    layers, unknown = _by_layer(parts, tensors)
    if unknown or not layers:
        raise _misfit(parts, unknown)
    for (part, layer), matrices in layers.items():
        if not {"A", "B"} <= matrices.keys():
            raise ModelError(f"layer {layer!r} needs both lora_A and lora_B, found only "
                             f"{', '.join(f'lora_{side}' for side in matrices)}")
        weight: Any = parts[part].get_submodule(layer).weight
        down, up = (matrices[side].float().flatten(1) for side in "AB")
        added = _scale(config or {}, part, layer, matrices) * (up @ down)
        if added.shape != weight.flatten(1).shape or not added.isfinite().all():
            raise ModelError(f"what is added to layer {layer!r}, {tuple(added.shape)}, is not "
                             f"finite, or not of the shape of its weight, {tuple(weight.shape)}")
        weight.copy_(weight.float() + added.view_as(weight).to(weight.device))


def _apply_foreign(pipeline: Any, lora: str | Path) -> None:
    """Add LoRA weights in a layout of diffusers' or peft's, or in another that diffusers reads."""
    from diffusers.loaders.lora_base import LoraBaseMixin

    path, config = _lora_file(lora), {}
    with safetensors.safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        if text := (file.metadata() or {}).get("lora_adapter_metadata"):  # diffusers' name
            config = parse_json(text, str(path))
    if path.name == _PEFT:
        config = read_json(path.with_name(_PEFT_CONFIG))
    parts = {part: module for part in _PARTS
             if isinstance(module := getattr(pipeline, part, None), nn.Module)}
    before = quick_look(*parts.values())
    if _by_layer(parts, tensors)[0] or not tensors:
        add_lora_weights(parts, tensors, config)
    else:  # the layout of another trainer, which diffusers converts
        is_loader, loaded = isinstance(pipeline, LoraBaseMixin), 0
        if is_loader:
            try:
                pipeline.load_lora_weights(tensors)
            except UNLOADABLE as error:
                raise ModelError(f"{_misfit(parts, tensors)} ({error})") from error
            loaded = sum(".lora_" in key or ".lokr_" in key
                         for part in parts.values() for key, _ in part.named_parameters())
        if loaded == 0 or loaded < sum(".lora_" in key for key in tensors):
            raise _misfit(parts, tensors)
        pipeline.fuse_lora(safe_fusing=True)  # refuses NaN
        pipeline.unload_lora_weights()
    if quick_look(*parts.values()) == before:
        raise ModelError("the weights change nothing: every lora_B is 0, or the scale is")


def _lora_file(lora: str | Path) -> Path:
    """The file itself, or the one with LoRA weights in a folder or on the hub."""
    path = Path(lora)
    if not path.exists():
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(str(lora), allow_patterns=["*.safetensors", _PEFT_CONFIG]))
    if path.is_dir():
        found = {each.name: each for each in path.glob("*.safetensors")}
        path = found.get(LORA) or found.get(_PEFT) or next(iter(found.values()), path / LORA)
        if path.name not in (LORA, _PEFT) and len(found) != 1:
            raise ModelError(f"expected {LORA}, {_PEFT} or one other .safetensors file, found "
                             f"{', '.join(sorted(found)[:5])}; pass the path of the file")
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: only .safetensors files are opened: nothing is unpickled")
    return regular_file(path)


def _by_layer(
    parts: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]
) -> tuple[dict[tuple[str, str], dict[str, Tensor]], list[str]]:
    """Tensors A and B, and perhaps alpha, by part and layer, and the keys that belong to none."""
    known = {part: {name for name, layer in module.named_modules()
                    if getattr(getattr(layer, "weight", None), "ndim", 0) > 1}
             for part, module in parts.items()}
    layers: dict[tuple[str, str], dict[str, Tensor]] = {}
    prefixes: dict[str, str] = {}
    unknown = []
    for key in sorted(tensors):
        name, side, alpha = found.groups() if (found := _KEY.fullmatch(key)) else ("", "", "")
        words = name.split(".")
        part = next((word for word in words if word in parts), next(iter(parts)))
        ends = (".".join(words[start:]) for start in range(len(words)))
        layer = next((end for end in ends if end in known[part]), "")
        # one prefix for each part: a layer that is found behind another one is found by chance
        prefix = name.removesuffix(layer)
        is_taken = (side or alpha) in layers.get((part, layer), {})  # by another adapter
        if layer and not is_taken and prefixes.setdefault(part, prefix) == prefix:
            layers.setdefault((part, layer), {})[side or alpha] = tensors[key]
        else:
            unknown.append(key)
    return layers, unknown


def _misfit(parts: Iterable[str], found: Iterable[str]) -> ModelError:
    part, keys = next(iter(parts)), sorted(found)
    more = f" and {len(keys) - 3} more" if keys[3:] else ""
    return ModelError(
        f"expected keys such as '{part}.LAYER.lora_A.weight' and '{part}.LAYER.lora_B.weight', "
        f"found {', '.join(map(repr, keys[:3])) or 'none'}{more}, which fit no layer")


def _scale(
    config: Mapping[str, Any], part: str, layer: str, matrices: Mapping[str, Tensor]
) -> float:
    """alpha / r as peft has it; diffusers puts the part in front of every entry of the
    configuration, and 1 is meant where nothing is said."""
    config = {key.removeprefix(part + "."): value for key, value in config.items()
              if "." not in key or key.startswith(part + ".")}
    alpha, rank = config.get("lora_alpha"), len(matrices["A"])
    for pattern, value in reversed((config.get("alpha_pattern") or {}).items()):
        alpha = value if re.match(rf"(.*\.)?({pattern})$", layer) else alpha
    alpha = matrices["alpha"].item() if "alpha" in matrices else alpha
    return 1.0 if alpha is None else alpha / (rank**0.5 if config.get("use_rslora") else rank)
