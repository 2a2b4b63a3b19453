"""What identifies a model: a digest of its weights, and a quick look whether they have changed."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

# How many entries of each tensor the quick look reads.
_SAMPLES = 16


class Fingerprint:
    """The digest of some modules, computed when it is asked for and again after a change.

    A change in memory (``load_lora_weights``, ``set_adapters``, ``fuse_lora``, an optimizer's
    step, ``half()``) is noticed by a quick look at a few entries of every tensor, a few
    milliseconds for a Stable Diffusion U-Net. An edit of other single entries alone is not.

    Args:
        modules: diffusers models, with a ``config``.
    """

    def __init__(self, *modules: nn.Module):
        self._modules = modules
        self._seen: str | None = None
        self._digest = ""

    @property
    def value(self) -> str:
        """SHA-256 in hexadecimal of configuration and weights as they are now."""
        now = quick_look(*self._modules)
        if now != self._seen:
            self._seen, self._digest = now, fingerprint_of(*self._modules)
        return self._digest


def fingerprint_of(*modules: nn.Module) -> str:
    """SHA-256 over configuration and weights, in hexadecimal; takes about 1 s per 2 GB.

    LoRA weights count, and how strongly they are mixed in.
    """
    digest = hashlib.sha256()
    for module in modules:
        for text in _facts(module):
            digest.update(text.encode())
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            data = tensor.detach().cpu().contiguous().flatten()
            digest.update(data.view(torch.uint8).numpy() if data.numel() else b"")
    return digest.hexdigest()


@torch.no_grad()
def quick_look(*modules: nn.Module) -> str:
    """A digest that changes with almost any change of the modules; milliseconds."""
    digest = hashlib.sha256()
    for module in modules:
        for text in _facts(module):
            digest.update(text.encode())
        sampled = []
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            flat = tensor.detach().flatten()
            sampled.append(flat[:: max(1, len(flat) // _SAMPLES)][:_SAMPLES].to(torch.float64))
        if sampled:
            digest.update(torch.cat(sampled).cpu().numpy().tobytes())
    return digest.hexdigest()


def digest_of(values: dict[str, Tensor]) -> str:
    """SHA-256 in hexadecimal of named tensors, such as an embedded prompt."""
    digest = hashlib.sha256()
    for name, value in sorted(values.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _facts(module: Any) -> Iterator[str]:
    """Configuration, and how strongly LoRA weights are mixed in."""
    config = getattr(module, "config", {})  # diffusers' is a mapping, transformers' gives one
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    config = {k: v for k, v in config.items() if not k.startswith("_")}
    yield json.dumps(config, sort_keys=True, default=str)
    for name, part in module.named_modules():
        if isinstance(getattr(part, "scaling", None), dict):  # a LoRA layer of peft
            yield f"{name}{sorted(part.scaling.items())}{part.active_adapters!r}"
            yield f"{part.merged_adapters!r}{part.disable_adapters!r}"
