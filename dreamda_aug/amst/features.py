"""Reading a classifier's features and logits in one pass, without touching its code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from dreamda_aug.amst.heads import describe_candidates, find_head, head_sizes, main_logits


class FeatureTap:
    """A hook that keeps what enters (or, for ``on_output``, leaves) a layer, when it is asked to.

    It stays installed while the model is wrapped: a hook added after the first ``torch.compile``
    call would be ignored. Switched off it does nothing, so that exports of the plain path hold
    no trace of it.
    """

    def __init__(self, on_output: bool = False) -> None:
        self.on_output = on_output
        self.listening = False
        self.heard: Tensor | None = None
        self._handle = None

    def __call__(self, module: nn.Module, args: tuple, output: object = None) -> None:
        if self.listening:
            self.heard = output if self.on_output else args[0]

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
    """Knows the final layer of one classifier, and reads what enters it.

    Args:
        model: the classifier.
        num_classes, head, features, feature_dim: as in ``AMSTWrapper``.

    Attributes:
        layer: the final layer; with ``features`` the submodule that makes them.
        name: its name in ``model.named_modules()``.
        is_head: ``layer`` is the final layer.
        feature_dim, num_classes: sizes of features and logits.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int | None,
        head: str | nn.Module | None,
        features: str | nn.Module | None,
        feature_dim: int | None,
    ) -> None:
        self.is_head = features is None
        if self.is_head:
            self.name, self.layer = find_head(model, head, num_classes)
            self.feature_dim, self.num_classes = head_sizes(self.layer)
            if num_classes is not None and self.num_classes != num_classes:
                raise ValueError(
                    f'num_classes is {num_classes}, but the final layer "{self.name}" has '
                    f"{self.num_classes} outputs. " + describe_candidates(model)
                )
        else:
            self.name, self.layer = _submodule(model, features)
            self.feature_dim, self.num_classes = feature_dim, num_classes
        if not self.feature_dim or not self.num_classes:
            raise ValueError(
                f'"{self.name}" has {self.feature_dim} features for {self.num_classes} classes; '
                "both must be known: run a lazily initialised model once before wrapping it, and "
                "give features=… together with feature_dim=… and num_classes=…."
            )
        self.tap = FeatureTap(on_output=not self.is_head)
        self.tap.attach(self.layer)

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
        self.tap.attach(self.layer)
        self.tap.listening = True
        try:
            logits = main_logits(model(images))
            heard = self.tap.heard
        finally:
            self.tap.listening, self.tap.heard = False, None
        if heard is None:
            raise RuntimeError(
                f'the layer "{self.name}" did not run, or runs in a graph that was compiled '
                "before it was wrapped: wrap first and compile then, or name another layer."
            )
        if logits.shape[1] != self.num_classes:
            raise ValueError(
                f'the classifier answers with {logits.shape[1]} classes, "{self.name}" stands for '
                f'{self.num_classes}: name the final layer, head="…". '
                + describe_candidates(model)
            )
        features = pool_features(heard, self._channels_first(heard))
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

    def _channels_first(self, heard: Tensor) -> bool:
        if self.is_head:
            return isinstance(self.layer, nn.Conv2d)
        return heard.ndim == 4


def pool_features(features: Tensor, channels_first: bool) -> Tensor:
    """Features as they enter the final layer -> one vector per image, (N, D).

    Args:
        features: (N, D), (N, tokens…, D) or, with ``channels_first``, (N, D, H, W).
        channels_first: the features dimension is 1 (before a convolution) and not the last.

    Positions are averaged; for a linear layer that commutes with averaging its answers.
    """
    if channels_first:
        return features.flatten(2).mean(2) if features.ndim > 2 else features
    return features.flatten(1, -2).mean(1) if features.ndim > 2 else features


def _submodule(model: nn.Module, features: str | nn.Module) -> tuple[str, nn.Module]:
    for name, module in model.named_modules():
        if module is features or (isinstance(features, str) and name == features):
            return name, module
    shown = f'"{features}"' if isinstance(features, str) else type(features).__name__
    raise ValueError(f"features must be a submodule of the model or its name, got {shown}.")


def _has_training_batch_norm(model: nn.Module) -> bool:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    return any(isinstance(module, kinds) and module.training for module in model.modules())


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is back in the mode that it was in by itself."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
