"""Finding the final classification layer of any classifier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

FinalLayer = nn.Linear | nn.Conv2d

# Side lengths of the images that common classifiers take. The first one that runs is enough: the
# probe reads the order in which layers run, never their values.
_PROBE_SIDES = (32, 64, 224, 28, 8, 16, 48, 96, 128, 160, 192, 240, 256, 299, 384, 518)

# Errors of a model when a probe has the wrong shape or the meta device lacks an operator.
_PROBE_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError)


def main_logits(output: Any) -> Tensor:
    """The class logits, (N, C), in whatever a classifier returned.

    A tensor is returned unchanged. Of a named tuple, data class or dictionary ``logits`` is
    returned (torchvision's models with auxiliary logits in training, transformers' models), of a
    plain tuple its first member.

    Raises:
        TypeError: ``output`` holds no logits.
    """
    if isinstance(output, dict) and "logits" in output:
        output = output["logits"]
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 2:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(
            "model must return class logits of shape (N, C), or a tuple or named output that "
            f"holds them as its first member or as .logits, got {found}."
        )
    return output


def find_head(
    model: nn.Module, head: str | nn.Module | None = None, num_classes: int | None = None
) -> tuple[str, FinalLayer]:
    """The final classification layer of ``model``: its name and the layer itself.

    The first of these that gives an answer decides:

    1. the caller's ``head``;
    2. timm's ``get_classifier()``; the first head of a distilled model, which has two;
    3. a forward pass on the meta device, which computes no values: the last layer that ran and
       has one output per logit;
    4. the layer that was registered last.

    Args:
        model: any classifier of images.
        head: the layer, or its name in ``model.named_modules()``.
        num_classes: number of logits; step 4 skips layers with another number of outputs.

    Returns:
        The name, and an ``nn.Linear`` or a 1×1 ``nn.Conv2d``.

    Raises:
        ValueError: there is no such layer, or several are possible; the message lists the
            candidates.
        TypeError: ``head`` is a layer of another kind.
    """
    if head is not None:
        return _explicit_head(model, head)
    found = _timm_classifier(model) or _traced_head(model) or _last_registered(model, num_classes)
    if found is None:
        wanted = "" if num_classes is None else f" with {num_classes} outputs"
        raise ValueError(
            f"the final classification layer{wanted} of {type(model).__name__} was not found. "
            'Name it, head="…", or name a layer that makes the features: num_classes=…, '
            'head=FeatureLayer("…", feature_dim=…). ' + describe_candidates(model)
        )
    return found


def head_sizes(layer: FinalLayer) -> tuple[int, int]:
    """Number of features that enter a classification layer, and number of its classes."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def describe_candidates(model: nn.Module) -> str:
    """One sentence with the last ten layers of ``model`` that could be the final one."""
    lines = [
        '"{}" ({} {} -> {})'.format(name, type(layer).__name__, *head_sizes(layer))
        for name, layer in _candidates(model)
    ]
    if not lines:
        return "It has no Linear and no 1×1 Conv2d layer."
    return f"Candidates, last {min(len(lines), 10)} of {len(lines)}: " + ", ".join(lines[-10:])


def _candidates(model: nn.Module) -> Iterator[tuple[str, FinalLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or (
            isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1} and module.groups == 1
        ):
            yield name, module


def _explicit_head(model: nn.Module, head: str | nn.Module) -> tuple[str, FinalLayer]:
    for name, layer in model.named_modules():
        if layer is head or (isinstance(head, str) and name == head):
            break
    else:
        shown = f'"{head}"' if isinstance(head, str) else type(head).__name__
        raise ValueError(
            f"head must be a layer of the model or its name, got {shown}. "
            + describe_candidates(model)
        )
    for candidate in _candidates(model):
        if candidate[1] is layer:
            return candidate
    raise TypeError(
        f'head must be a Linear or 1×1 Conv2d layer, "{name}" is a {type(layer).__name__}. '
        + describe_candidates(model)
    )


def _timm_classifier(model: nn.Module) -> tuple[str, FinalLayer] | None:
    get_classifier: Any = getattr(model, "get_classifier", None)
    if get_classifier is None:
        return None
    classifier = get_classifier()
    if isinstance(classifier, (tuple, list)):
        classifier = classifier[0]
    return next((found for found in _candidates(model) if found[1] is classifier), None)


def _last_registered(
    model: nn.Module, num_classes: int | None
) -> tuple[str, FinalLayer] | None:
    fitting = [
        found
        for found in _candidates(model)
        if num_classes is None or head_sizes(found[1])[1] == num_classes
    ]
    # Several layers with as many outputs: without a probe any choice would be a guess.
    if not fitting or [head_sizes(layer)[1] for _, layer in fitting].count(
        head_sizes(fitting[-1][1])[1]
    ) > 1:
        return None
    return fitting[-1]


def _traced_head(model: nn.Module) -> tuple[str, FinalLayer] | None:
    """The last layer that runs, among those with one output per logit."""
    ran: list[tuple[str, FinalLayer, Tensor]] = []
    handles = [
        layer.register_forward_hook(
            lambda _, __, output, name=name, layer=layer: ran.append((name, layer, output))
        )
        for name, layer in _candidates(model)
    ]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for shape in _probe_shapes(model):
            ran.clear()
            try:
                logits = _run_on_meta(model, shape)
            except _PROBE_ERRORS:
                continue
            fitting = [found for found in ran if head_sizes(found[1])[1] == logits.shape[1]]
            # a layer whose output *is* the logits wins over one that merely ran later.
            exact = [found for found in fitting if found[2] is logits]
            return (exact or fitting)[-1][:2] if fitting else None
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return None


def _run_on_meta(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    tensors: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    dtypes = [tensor.dtype for tensor in on_meta.values() if tensor.is_floating_point()]
    images = torch.empty(shape, device="meta", dtype=dtypes[0] if dtypes else None)
    with torch.no_grad():
        output = torch.func.functional_call(model, on_meta, (images,), tie_weights=False)
    return main_logits(output)


def _probe_shapes(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Input shapes that the first linear and the first convolutional layer would take."""
    sides = (*_stated_sides(model), *_PROBE_SIDES)
    seen: set[type] = set()
    for module in model.modules():
        kind = next((k for k in (nn.Linear, nn.Conv2d, nn.Conv3d) if isinstance(module, k)), None)
        if kind is None or kind in seen:
            continue
        seen.add(kind)
        if kind is nn.Linear:
            yield 2, module.in_features
        else:
            frames = (16,) if kind is nn.Conv3d else ()
            yield from ((2, module.in_channels, *frames, side, side) for side in sides)


def _stated_sides(model: nn.Module) -> list[int]:
    """The input side that the model itself states: torchvision's ViT, timm, transformers."""
    stated = [
        getattr(model, "image_size", None),
        getattr(getattr(model, "config", None), "image_size", None),
        (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (None,))[-1],
    ]
    return [side for side in stated if isinstance(side, int)]
