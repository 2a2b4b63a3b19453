"""Reading a classifier's features and logits in one forward pass, without editing its code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dreamda_aug.amst.checks import check_least
from dreamda_aug.amst.heads import describe_candidates, find_head, head_sizes, main_logits


@dataclass(frozen=True)
class FeatureLayer:
    """Where to read features of a classifier that does not end in a Linear or 1×1 Conv2d layer.

    Attributes:
        layer: a submodule of the classifier, or its name, whose output are the features: (N, D),
            (N, tokens, D) or (N, D, H, W).
        feature_dim: D, ≥ 1.

    Raises:
        ValueError: ``feature_dim`` is below 1.
    """

    layer: str | nn.Module
    feature_dim: int

    def __post_init__(self) -> None:
        check_least("FeatureLayer.feature_dim", self.feature_dim, 1)


class FeatureTap:
    """A hook that keeps the features of one forward pass while ``listening`` is True.

    It keeps what enters its layer or, with ``on_output``, what leaves it. It stays installed
    while the model is wrapped: torch ignores a hook added after the first ``torch.compile`` call.
    While it does not listen it does nothing, so that exports of the plain path hold no trace of
    it.
    """

    def __init__(self, on_output: bool = False) -> None:
        self.on_output = on_output
        self.listening = False
        self.features: Tensor | None = None
        self._handle: RemovableHandle | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        if self.listening:
            self.features = output if self.on_output else args[0]

    def attach(self, layer: nn.Module) -> None:
        """Install the hook on ``layer``, once."""
        if self._handle is None:
            register = (
                layer.register_forward_hook if self.on_output else layer.register_forward_pre_hook
            )
            self._handle = register(self)

    def detach(self) -> None:
        """Take the hook off again."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


class FeatureReader:
    """Finds the final layer of one classifier, and reads what enters it.

    Args:
        model: the classifier.
        num_classes, head: as in ``AMSTWrapper``.

    Attributes:
        layer: the final layer; for a ``FeatureLayer`` the submodule whose output is read.
        name: its name in ``model.named_modules()``.
        is_head: ``layer`` is the final layer.
        feature_dim, num_classes: sizes of features and logits.

    Raises:
        ValueError: there is no such layer, or its sizes are unknown or do not fit.
    """

    layer: nn.Module

    def __init__(
        self,
        model: nn.Module,
        num_classes: int | None,
        head: str | nn.Module | FeatureLayer | None,
    ) -> None:
        self.is_head = not isinstance(head, FeatureLayer)
        if isinstance(head, FeatureLayer):
            self.name, self.layer = _submodule(model, head.layer)
            if not num_classes:
                raise ValueError(
                    "num_classes must be known with a FeatureLayer: AMSTWrapper(model, "
                    f"num_classes=…, head=FeatureLayer(…)); got {num_classes}."
                )
            self.feature_dim, self.num_classes = head.feature_dim, num_classes
        else:
            self.name, final = find_head(model, head, num_classes)
            self.layer = final
            self.feature_dim, self.num_classes = head_sizes(final)
            if not self.feature_dim:
                raise ValueError(
                    f'the size of the final layer "{self.name}" is not known yet: run a lazily '
                    "initialised model once before wrapping it."
                )
            if num_classes is not None and self.num_classes != num_classes:
                raise ValueError(
                    f'num_classes is {num_classes}, but the final layer "{self.name}" has '
                    f"{self.num_classes} outputs. " + describe_candidates(model)
                )
        self.hook = FeatureTap(on_output=not self.is_head)
        self.hook.attach(self.layer)

    def read(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features, (N, D), and float32 logits, (N, classes), both finite.

        Raises:
            RuntimeError: the layer did not run.
            ValueError: a batch of one in front of BatchNorm, sizes other than those of the layer,
                or values that are not finite.
        """
        if len(images) == 1 and _has_training_batch_norm(model):
            raise ValueError(
                "a batch of one image cannot train BatchNorm layers, whose variance would be 0; "
                "give more images, or put these layers into eval mode."
            )
        self.hook.attach(self.layer)
        self.hook.listening = True
        try:
            logits = main_logits(model(images))
            captured = self.hook.features
        finally:
            self.hook.listening, self.hook.features = False, None
        if captured is None:
            raise RuntimeError(
                f'the layer "{self.name}" did not run, or runs in a graph that was compiled '
                "before it was wrapped: wrap the model before you compile it, or name another "
                "layer."
            )
        if logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the classifier returns logits of {logits.shape[1]} classes, but "
                f'"{self.name}" has {self.num_classes}: name the final layer, head="…". '
                + describe_candidates(model)
            )
        features = pool_features(captured, self._channels_first(captured))
        if features.shape[1] != self.feature_dim:
            raise ValueError(
                f'feature_dim is {self.feature_dim}, but "{self.name}" gives '
                f"{features.shape[1]} features."
            )
        finite = logits.isfinite().all(1) & features.isfinite().all(1)
        if not finite.all():
            raise ValueError(
                f"features or logits are nan or infinite for {(~finite).sum().item()} of "
                f"{len(images)} images: look at the images (finite?), the learning rate, and the "
                "weights."
            )
        return features, logits.float()

    def _channels_first(self, captured: Tensor) -> bool:
        if self.is_head:
            return isinstance(self.layer, nn.Conv2d)
        return captured.ndim == 4


def pool_features(features: Tensor, channels_first: bool) -> Tensor:
    """Features as they enter the final layer -> one vector per image, (N, D).

    Args:
        features: (N, D), (N, tokens…, D) or, with ``channels_first``, (N, D, H, W).
        channels_first: the feature dimension is dimension 1, as before a convolution.

    Positions are averaged. A linear layer gives the same logits for the mean of the features as
    the mean of its logits over the positions.
    """
    if channels_first:
        return features.flatten(2).mean(2) if features.ndim > 2 else features
    return features.flatten(1, -2).mean(1) if features.ndim > 2 else features


def _submodule(model: nn.Module, wanted: str | nn.Module) -> tuple[str, nn.Module]:
    for name, module in model.named_modules():
        if module is wanted or (isinstance(wanted, str) and name == wanted):
            return name, module
    shown = f'"{wanted}"' if isinstance(wanted, str) else type(wanted).__name__
    raise ValueError(
        f"FeatureLayer.layer must be a submodule of the model or its name, got {shown}."
    )


def _has_training_batch_norm(model: nn.Module) -> bool:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return any(isinstance(module, kinds) and module.training for module in model.modules())


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every module has its own earlier mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
