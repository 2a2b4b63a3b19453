"""Checks of what users hand to AMST, each with an error that names argument, rule and value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

AGREEMENT_RULES = ("all", "majority")
CONFIDENCE_RULES = ("mean", "min", "max")


def check_rules(agreement: str, confidence: str, confidence_threshold: float) -> None:
    """Raise ``ValueError`` unless the three describe an acceptance rule."""
    if agreement not in AGREEMENT_RULES:
        raise ValueError(f"agreement must be one of {AGREEMENT_RULES}, got {agreement!r}.")
    if confidence not in CONFIDENCE_RULES:
        raise ValueError(f"confidence must be one of {CONFIDENCE_RULES}, got {confidence!r}.")
    check_unit_interval("confidence_threshold", confidence_threshold)


def check_unit_interval(name: str, value: float) -> None:
    """Raise ``ValueError`` unless 0 ≤ value ≤ 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}.")


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
    """Raise ``ValueError`` unless there are labelled images, and their targets fit."""
    if len(images) == 0:
        raise ValueError(f"{name} must hold at least one labelled image, got none.")
    check_targets("targets", targets, len(images), classes)


def check_pseudo_labels(count: int, images: int) -> None:
    """Raise ``ValueError`` unless there is one pseudo-label per synthetic image."""
    if count != images:
        raise ValueError(
            f"pseudo_labels must be as many as synthetic images, got {count} for {images}."
        )


def check_model(model: nn.Module) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``model`` can be wrapped."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
    if hasattr(model, "_orig_mod"):
        raise TypeError("model is compiled; wrap first: torch.compile(AMSTWrapper(model)).")
    if not any(True for _ in model.parameters()):
        raise ValueError("model must have parameters, got none.")


def check_weights(weights: Mapping[str, float]) -> None:
    """Raise ``ValueError`` unless all factors of loss terms, by name, are finite and ≥ 0."""
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{name} must be finite and ≥ 0, got {weight}.")


def check_views(name: str, views: Sequence[str]) -> None:
    """Raise ``ValueError`` unless ``views`` are "weak" and "strong", at least one of them."""
    if isinstance(views, str) or not views or not set(views) <= {"weak", "strong"}:
        raise ValueError(
            f'{name} must be made of "weak" and "strong", at least one of them, got {views!r}.'
        )


def check_consistency_on(consistency_on: str) -> None:
    """Raise ``ValueError`` unless it says which images the consistency term compares."""
    if consistency_on not in ("all", "unlabelled"):
        raise ValueError(f'consistency_on must be "all" or "unlabelled", got {consistency_on!r}.')


def check_run(
    labelled: int,
    pool: int,
    truth: Sequence[int] | Tensor | None,
    collapse_factor: float,
    restart: bool,
    in_batch: bool,
) -> None:
    """Raise ``ValueError`` unless a self-training run can go on with these."""
    if not labelled or not pool:
        raise ValueError(f"labelled and pool must hold images, got {labelled} and {pool}.")
    if truth is not None and len(truth) != pool:
        raise ValueError(f"truth must have {pool} labels, got {len(truth)}.")
    if not collapse_factor > 0:
        raise ValueError(f"collapse_factor must be > 0, got {collapse_factor}.")
    if restart and in_batch:
        raise ValueError("restart follows labelling rounds, which in_batch=True has none of.")


def check_least(name: str, value: float | None, least: int) -> None:
    """Raise ``ValueError`` unless ``value`` is None or at least ``least``."""
    if value is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_shares(shares: Sequence[float] | None, classes: int) -> Tensor:
    """Class shares as a tensor, (classes,); all equal for None.

    Raises:
        ValueError: not one share ≥ 0 per class, or their sum is not 1.
    """
    if shares is None:
        return torch.full((classes,), 1 / classes)
    shares = torch.as_tensor(shares, dtype=torch.float32)
    if shares.shape != (classes,) or (shares < 0).any() or abs(shares.sum() - 1) > 1e-3:
        raise ValueError(
            f"expected_shares must be {classes} numbers ≥ 0 with sum 1, got {shares.tolist()}."
        )
    return shares


def check_heads_learn(auxiliary_weight: float) -> None:
    """Raise ``ValueError`` where a restart would leave auxiliary heads untrained."""
    if not auxiliary_weight:
        raise ValueError(
            "restart puts auxiliary heads back to their first weights, and with auxiliary_weight=0 "
            "they learn nothing after that; make it larger, or leave restart out."
        )
