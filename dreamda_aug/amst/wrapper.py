"""AMSTWrapper: five heads on the features of any classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dreamda_aug.amst.checks import (
    check_batch,
    check_head_weights,
    check_model,
    check_pseudo_labels,
)
from dreamda_aug.amst.features import FeatureLayer, FeatureReader, evaluation_mode
from dreamda_aug.amst.losses import AMSTLosses, PseudoLabels, agree_and_confident
from dreamda_aug.amst.old_keywords import filled, sort_old_keywords
from dreamda_aug.amst.rules import (
    ConsistencyRule,
    HeadViews,
    LossWeights,
    ViewName,
    VotingRule,
)
from dreamda_aug.amst.step import MultiHead, pretraining_loss, training_losses
from dreamda_aug.amst.views import StrongView, View, WeakView, apply_view

_OLD_KEYWORDS: dict[str, tuple[str, type, str]] = {
    "features": ("head", FeatureLayer, "layer"),
    "feature_dim": ("head", FeatureLayer, "feature_dim"),
    "head_views": ("views", HeadViews, "auxiliary"),
    "labeled_view": ("views", HeadViews, "main"),
    "agreement": ("voting", VotingRule, "agreement"),
    "confidence": ("voting", VotingRule, "confidence"),
    "confidence_threshold": ("voting", VotingRule, "confidence_threshold"),
    "consistency_threshold": ("consistency", ConsistencyRule, "confidence_threshold"),
    "consistency_on": ("consistency", ConsistencyRule, "images"),
    "pseudo_weight": ("weights", LossWeights, "pseudo"),
    "consistency_weight": ("weights", LossWeights, "consistency"),
    "orthogonality_weight": ("weights", LossWeights, "orthogonality"),
    "auxiliary_weight": ("weights", LossWeights, "auxiliary"),
}


class AMSTWrapper(nn.Module):
    """Asymmetric multi-head self-training around any classifier of images.

    The classifier's own final layer is the main head f5. Auxiliary heads on the same features
    learn from the weak and the strong view of labeled images. Together they label the synthetic
    images. Called with images alone, the wrapper returns exactly what the classifier returns.

    Args:
        model: a classifier, images (N, C, H, W) -> logits (N, classes). Wrap it before you
            compile or distribute it: ``torch.compile(AMSTWrapper(model))``.
        num_classes: checked against the final layer; needed with a ``FeatureLayer``.
        head: the final classification layer or its name, where it is not found automatically; or a
            ``FeatureLayer``, for a classifier that does not end in a Linear or 1×1 Conv2d layer.
        weak, strong: views, functions from a batch of images to a batch of images. Default
            ``WeakView()`` and ``StrongView(weak=weak)``, for images in [0, 1]; ``StrongView``
            says how to use it with normalised images. A torchvision transform works too, but
            gives all images of a batch the same random draw.
        views: the view that each head learns from; None: ``HeadViews()``.
        voting: when the auxiliary heads' votes make a label; None: ``VotingRule()``.
        consistency: which images the consistency term compares; None: ``ConsistencyRule()``.
        weights: factors of the terms of the loss; None: ``LossWeights()``.
        old_keywords: fields of the last four by the names of version 0.1, such as
            ``confidence_threshold``. They work, with a ``DeprecationWarning``.

    Attributes:
        model: the classifier. ``wrapper.model.state_dict()`` always has the classifier's own keys.
        auxiliary_heads: the auxiliary heads, linear layers.
        num_classes: number of classes.
        views, voting, consistency, weights: as given. Put another value in their place to change
            one during training.

    Raises:
        ValueError: the final layer is not found (the message lists the candidates), or has
            another number of classes than ``num_classes``.
        TypeError: ``model`` is no module, is compiled, or is wrapped already; or an unknown
            keyword.

    Source: DreamDA, arXiv:2403.12803, section on AMST, whose code was not released; ``rules``
    marks what the paper does not say.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int | None = None,
        *,
        head: str | nn.Module | FeatureLayer | None = None,
        weak: View | None = None,
        strong: View | None = None,
        views: HeadViews | None = None,
        voting: VotingRule | None = None,
        consistency: ConsistencyRule | None = None,
        weights: LossWeights | None = None,
        **old_keywords: Any,
    ) -> None:
        super().__init__()
        if isinstance(model, AMSTWrapper):
            raise TypeError("model is wrapped already; wrap model.to_classifier().")
        check_model(model)
        changes = sort_old_keywords("AMSTWrapper", old_keywords, _OLD_KEYWORDS)
        if changes["head"]:
            head = FeatureLayer(**changes["head"])
        self.views = filled("views", views, HeadViews, changes["views"])
        self.voting = filled("voting", voting, VotingRule, changes["voting"])
        self.consistency = filled(
            "consistency", consistency, ConsistencyRule, changes["consistency"]
        )
        self.weights = filled("weights", weights, LossWeights, changes["weights"])

        # Not a module: the layer that it holds must not be registered, and saved, twice.
        self._reader = FeatureReader(model, num_classes, head)
        self.model = model
        self.num_classes = self._reader.num_classes
        weak = WeakView() if weak is None else weak
        if strong is None:
            strong = StrongView(weak=weak) if isinstance(weak, WeakView) else StrongView()
        # A plain dictionary: a view that is a module must not become a part of the state_dict.
        self._view_functions: dict[ViewName, View] = {"weak": weak, "strong": strong}
        like = next(iter(self._reader.layer.parameters()), next(model.parameters()))
        sizes = self._reader.feature_dim, self.num_classes
        self.auxiliary_heads = nn.ModuleList(
            nn.Linear(*sizes, device=like.device, dtype=like.dtype) for _ in self.views.auxiliary
        )

    def forward(
        self,
        images: Tensor,
        targets: Tensor | None = None,
        synthetic: Tensor | None = None,
        seed_labels: Tensor | None = None,
        pseudo_labels: PseudoLabels | None = None,
        stage: Literal["pretraining", "training"] | None = None,
        head_weights: Tensor | None = None,
    ) -> Any:
        """What the classifier itself returns; or, with ``stage``, a loss.

        ``stage="pretraining"`` is ``pretraining_loss(images, targets, …)`` and
        ``stage="training"`` is ``losses(images, targets, synthetic, …)``. Use it where the wrapper
        is itself wrapped: ``DistributedDataParallel`` averages the gradients only of what passes
        through ``forward``. It needs ``find_unused_parameters=True``, because each stage leaves
        some heads out.

        Raises:
            ValueError: another stage, or a stage without targets.
        """
        if stage is None:
            return self.model(images)
        if stage not in ("pretraining", "training"):
            raise ValueError(f'stage must be None, "pretraining" or "training", got {stage!r}.')
        if targets is None:
            raise ValueError(f'stage="{stage}" needs targets: wrapper(images, targets, stage=…).')
        if stage == "pretraining":
            return self.pretraining_loss(images, targets, head_weights)
        return self.losses(images, targets, synthetic, seed_labels, pseudo_labels, head_weights)

    def pretraining_loss(
        self, images: Tensor, targets: Tensor, head_weights: Tensor | None = None
    ) -> Tensor:
        """L_pre: the auxiliary heads, each on its view of labeled images, and orthogonality.

        Mean over the heads of their cross-entropy, plus ``weights.orthogonality`` times the
        orthogonality term. Gradients reach the features and the auxiliary heads, not the main
        head. The mean over heads (not the sum) keeps the step size independent of their number.

        Args:
            images: (N, C, H, W).
            targets: class indices, (N,) integers, or soft labels, (N, classes), as MixUp gives.
            head_weights: how much each image counts for each auxiliary head, (heads, N) ≥ 0;
                None: 1. ``RunPlan.head_share`` makes heads learn from images of their own by it.

        Raises:
            ValueError: targets out of range, empty batch, weights that do not fit, or logits that
                are not finite.
        """
        check_batch("images", images, targets, self.num_classes)
        check_head_weights(head_weights, len(self.auxiliary_heads), len(images))
        return pretraining_loss(self._multi_head(), images, targets, head_weights)

    @torch.no_grad()
    def label(self, images: Tensor, seed_labels: Tensor | None = None) -> PseudoLabels:
        """The labels that the auxiliary heads agree on, for images without augmentation.

        Runs in eval mode and puts every module back into its own earlier mode.

        Args:
            images: (N, C, H, W), N ≥ 0.
            seed_labels: if given, a further vote per image, (N,) integers; −1 is no vote.

        Raises:
            ValueError: logits that are not finite, or seed labels out of range.
        """
        return self.vote(self.head_probabilities(images), seed_labels)

    @torch.no_grad()
    def head_probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities of every auxiliary head in eval mode, (heads, N, classes)."""
        if len(images) == 0:
            return images.new_zeros(len(self.auxiliary_heads), 0, self.num_classes)
        with evaluation_mode(self):
            features, _ = self._reader.read(self.model, images)
            logits = [head(features).float() for head in self.auxiliary_heads]
            return torch.stack(logits).softmax(2)

    def vote(self, probabilities: Tensor, seed_labels: Tensor | None = None) -> PseudoLabels:
        """``agree_and_confident`` with this wrapper's rule; probabilities (heads, N, classes)."""
        return agree_and_confident(probabilities, self.voting, seed_labels=seed_labels)

    def losses(
        self,
        real: Tensor,
        targets: Tensor,
        synthetic: Tensor | None = None,
        seed_labels: Tensor | None = None,
        pseudo_labels: PseudoLabels | None = None,
        head_weights: Tensor | None = None,
    ) -> AMSTLosses:
        """One training step: L_sup on real and accepted images, L_c on the synthetic ones.

        Gradients of the supervised, pseudo and consistency terms reach the features and the main
        head; those of the auxiliary and orthogonality terms reach the auxiliary heads only.

        Args:
            real: labeled images, (N, C, H, W).
            targets: class indices, (N,) integers, or soft labels, (N, classes).
            synthetic: images without trusted labels, (M, C, H, W); None or M = 0: none.
            seed_labels: a further vote for ``label``, (M,) integers, −1 where unknown.
            pseudo_labels: labels made earlier, such as those of a pool; by default ``synthetic``
                is labeled now.
            head_weights: as in ``pretraining_loss``, of the real images.

        Raises:
            ValueError: targets out of range, a batch of one in front of BatchNorm, or logits
                that are not finite (no loss is returned, so no weight can become nan).
        """
        check_batch("real", real, targets, self.num_classes)
        check_head_weights(head_weights, len(self.auxiliary_heads), len(real))
        if synthetic is None or len(synthetic) == 0:
            synthetic, pseudo_labels = real[:0], None
        elif pseudo_labels is None:
            pseudo_labels = self.label(synthetic, seed_labels)
        else:
            check_pseudo_labels(len(pseudo_labels), len(synthetic))
        return training_losses(
            self._multi_head(), real, targets, synthetic, pseudo_labels, head_weights
        )

    def parameter_groups(
        self, lr: float, backbone_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Groups for an optimizer: the heads at ``lr``, the features at ``backbone_lr``.

        Args:
            lr: learning rate of the main and the auxiliary heads; of the features too, where
                ``backbone_lr`` is None.
            backbone_lr: learning rate of everything in front of the heads; smaller when it is
                pretrained.

        Returns:
            Two dictionaries with ``params``, ``lr`` and ``name``. Frozen parameters
            (``requires_grad=False``) are left out. With a ``FeatureLayer`` the main head is not
            known, and its parameters belong to the features.
        """
        heads = list(self.auxiliary_heads.parameters())
        if self._reader.is_head:
            heads += self._reader.layer.parameters()
        known = {id(parameter) for parameter in heads}
        features = [p for p in self.model.parameters() if id(p) not in known]
        groups = {"features": features, "heads": heads}
        rates = {"features": lr if backbone_lr is None else backbone_lr, "heads": lr}
        return [
            {"params": [p for p in params if p.requires_grad], "lr": rates[name], "name": name}
            for name, params in groups.items()
        ]

    def to_classifier(self) -> nn.Module:
        """The classifier that was wrapped, the same object: trained, and free of our hook.

        The wrapper remains usable and puts the hook back when it is trained further.
        """
        self._reader.hook.detach()
        return self.model

    def extra_repr(self) -> str:
        """The final layer and the rules, for ``repr``."""
        return f"head={self._reader.name!r}, num_classes={self.num_classes}, {self.voting}"

    def _multi_head(self) -> MultiHead:
        heads = [cast(nn.Linear, head) for head in self.auxiliary_heads]
        return MultiHead(self._read_views, heads, self.views, self.consistency, self.weights)

    def _read_views(
        self, images: Tensor, rows: Mapping[ViewName, slice]
    ) -> tuple[dict[ViewName, Tensor], dict[ViewName, Tensor]]:
        """Features and logits of each view, where a view is made of its rows of the images.

        One pass over all views, so that BatchNorm sees one batch and each weight is read once.
        """
        functions = self._view_functions
        views = [apply_view(name, functions[name], images[part]) for name, part in rows.items()]
        sizes = [len(view) for view in views]
        features, logits = self._reader.read(self.model, torch.cat(views))
        return (
            dict(zip(rows, torch.split(features, sizes), strict=True)),
            dict(zip(rows, torch.split(logits, sizes), strict=True)),
        )
