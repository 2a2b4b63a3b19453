"""What identifies a model: a digest of its weights, and a quick check whether they have changed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def digest_of_models(*modules: nn.Module) -> str:
    """SHA-256 in hexadecimal of configuration, weights and strength of LoRA weights as they are
    now; about 1 s per 2 GB."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(_metadata(module))
        _add(digest, module.state_dict())
    return digest.hexdigest()


@torch.no_grad()
def quick_look(*modules: nn.Module) -> str:
    """Digest of a few entries of every tensor, in milliseconds.

    It changes with ``load_lora_weights``, ``set_adapters``, ``fuse_lora``, an optimizer's step and
    ``half()``; an edit of other single entries alone is not found.
    """
    digest = hashlib.sha256()
    for module in modules:
        digest.update(_metadata(module))
        sampled = []
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            flat = tensor.detach().flatten()
            # not float64, which Apple's GPUs do not have
            sampled.append(flat[:: max(1, len(flat) // 16)][:16].float())
        if sampled:
            digest.update(torch.cat(sampled).cpu().numpy().tobytes())
    return digest.hexdigest()


def digest_of(values: Mapping[str, Tensor]) -> str:
    """SHA-256 in hexadecimal of named tensors, such as an embedded prompt."""
    digest = hashlib.sha256()
    _add(digest, values)
    return digest.hexdigest()


def _add(digest: Any, values: Mapping[str, Tensor]) -> None:
    for name, value in sorted(values.items()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        data = value.detach().cpu().contiguous().flatten()
        digest.update(data.view(torch.uint8).numpy() if data.numel() else b"")


def _metadata(module: Any) -> bytes:
    """Configuration, and how strongly LoRA weights are mixed in."""
    config = getattr(module, "config", {})  # diffusers' is a mapping, transformers' gives one
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    config = {k: v for k, v in config.items() if not k.startswith("_")}
    text = json.dumps(config, sort_keys=True, default=str)
    for name, part in module.named_modules():
        if isinstance(getattr(part, "scaling", None), dict):  # a LoRA layer of peft
            text += f"{name}{sorted(part.scaling.items())}{part.active_adapters!r}"
            text += f"{part.merged_adapters!r}{part.disable_adapters!r}"
    return text.encode()
