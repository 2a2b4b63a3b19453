"""Checks of what users hand to AMST, each with an error that names argument, rule and value."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        shown = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name} must be {shown}, got {value!r}.")


def check_unit_interval(name: str, value: float) -> None:
    """Raise ``ValueError`` unless 0 ≤ value ≤ 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}; 95 % is 0.95.")


def check_least(name: str, value: float | None, least: int) -> None:
    """Raise ``ValueError`` unless ``value`` is None or at least ``least``."""
    if value is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_ratio(ratio: Sequence[float]) -> None:
    """Raise ``ValueError`` unless ``ratio`` says how images of three sources share a batch."""
    fits = len(ratio) == 3 and min(ratio) >= 0 and ratio[0] > 0 and sum(ratio) < float("inf")
    if not fits:
        raise ValueError(
            "ratio must be three numbers ≥ 0, real : accepted : unlabeled, the first of them "
            f"> 0, such as (1, 1, 1); got {tuple(ratio)}."
        )


def check_labels(name: str, labels: Tensor, images: int, classes: int, lowest: int = 0) -> None:
    """Raise ``ValueError`` unless ``labels`` are (images,) class indices in [lowest, classes)."""
    if labels.shape != (images,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"{name} must be integer class indices of shape ({images},), got "
            f"{labels.dtype} of shape {tuple(labels.shape)}."
        )
    if images and (labels.min() < lowest or labels.max() >= classes):
        raise ValueError(
            f"{name} must lie in [{lowest}, {classes - 1}], the classifier has {classes} "
            f"classes; got {labels.min().item()} to {labels.max().item()}."
        )


def check_targets(name: str, targets: Tensor, images: int, classes: int) -> None:
    """Raise ``ValueError`` unless ``targets`` are class indices or soft labels, (N, C)."""
    if not targets.is_floating_point():
        check_labels(name, targets, images, classes)
        return
    if targets.shape != (images, classes):
        raise ValueError(
            f"{name} must be class indices ({images},) or soft labels ({images}, {classes}), "
            f"got {targets.dtype} of shape {tuple(targets.shape)}."
        )
    sums = targets.sum(1)
    if not ((targets >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-2)):
        raise ValueError(f"soft {name} must be ≥ 0 and sum to 1 in every row.")


def check_batch(name: str, images: Tensor, targets: Tensor, classes: int) -> None:
    """Raise ``ValueError`` unless there are labeled images, and their targets fit."""
    if len(images) == 0:
        raise ValueError(f"{name} must hold at least one labeled image, got none.")
    check_targets("targets", targets, len(images), classes)


def check_pseudo_labels(count: int, images: int) -> None:
    """Raise ``ValueError`` unless there is one pseudo-label per synthetic image."""
    if count != images:
        raise ValueError(
            f"pseudo_labels must hold one label per synthetic image, got {count} for {images}."
        )


def check_model(model: nn.Module) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``model`` can be wrapped."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    # torch's own mark of a compiled module; importing the class itself would load the compiler.
    if hasattr(model, "_orig_mod"):
        raise TypeError("model is compiled; wrap first: torch.compile(AMSTWrapper(model)).")
    if not any(True for _ in model.parameters()):
        raise ValueError("model must have parameters, got none.")


def check_sets(labeled: int, pool: int, truth: Sequence[int] | Tensor | None) -> None:
    """Raise ``ValueError`` unless both sets hold images, and the truth fits the pool."""
    if not labeled or not pool:
        raise ValueError(f"labeled and pool must hold images, got {labeled} and {pool}.")
    if truth is not None and len(truth) != pool:
        raise ValueError(f"truth must have {pool} labels, got {len(truth)}.")


def check_heads_learn(auxiliary_weight: float) -> None:
    """Raise ``ValueError`` where a restart would leave auxiliary heads untrained."""
    if not auxiliary_weight:
        raise ValueError(
            "restart puts the auxiliary heads back to their first weights, and with "
            "LossWeights(auxiliary=0) they learn nothing after that; use a larger weight, or "
            "restart=False."
        )


def check_head_weights(weights: Tensor | None, heads: int, images: int) -> None:
    """Raise ``ValueError`` unless ``weights`` are None, or (heads, images) numbers >= 0."""
    expected = (heads, images)
    if weights is not None and (weights.shape != expected or not bool((weights >= 0).all())):
        raise ValueError(
            f"head_weights must be numbers >= 0 of shape {expected}, one for each auxiliary "
            f"head and labeled image, got shape {tuple(weights.shape)}, from "
            f"{float(weights.min()) if weights.numel() else 'nothing'}."
        )
