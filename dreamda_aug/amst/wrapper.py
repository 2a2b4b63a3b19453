"""AMSTWrapper: five heads on the features of any classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dreamda_aug.amst.checks import (
    check_batch,
    check_consistency_on,
    check_model,
    check_pseudo_labels,
    check_rules,
    check_unit_interval,
    check_views,
    check_weights,
)
from dreamda_aug.amst.features import FeatureReader, evaluation_mode
from dreamda_aug.amst.losses import (
    AMSTLosses,
    PseudoLabels,
    agree_and_confident,
    auxiliary_loss,
    orthogonality_loss,
)
from dreamda_aug.amst.step import training_losses
from dreamda_aug.amst.views import StrongView, View, WeakView, apply_view


class AMSTWrapper(nn.Module):
    """Asymmetric multi-head self-training around any classifier of images.

    The classifier's own final layer is the main head f5; auxiliary heads on the same features
    learn from the weak and the strong view of labelled images and label the others together.
    Called with images alone it answers exactly what the classifier answers.

    Args:
        model: a classifier, images (N, C, H, W) -> logits (N, classes). Wrap first, then compile
            or distribute: ``torch.compile(AMSTWrapper(model))``.
        num_classes: checked against the final layer; needed only with ``features``.
        head: the final classification layer or its name, where it is not found by itself.
        features: in place of ``head``, for a classifier that does not end in a Linear or 1×1
            Conv2d layer: a submodule (or its name) whose output are the features, (N, D),
            (N, tokens, D) or (N, D, H, W); ``feature_dim`` is D, and ``num_classes`` is needed.
        weak, strong: views, functions from a batch of images to a batch of images. Default
            ``WeakView()`` and ``StrongView(weak=weak)``; these want images in [0, 1], or the
            normalisation told to them (see ``StrongView``). A torchvision transform works too,
            but treats all images of a batch alike.
        head_views: the view that each auxiliary head learns from; its length is the number of
            heads. Default f1ʷ, f2ʷ, f1ˢ, f2ˢ [paper].
        agreement: ``"all"`` heads vote alike, or more than half do, ``"majority"`` [ours].
        confidence: the ``"mean"``, ``"min"`` or ``"max"`` over heads of the label's probability
            [ours].
        confidence_threshold: smallest confidence of an accepted label, in [0, 1] [ours]. 0.9 and
            not FixMatch's 0.95: four heads rarely agree by chance, and on digits (three
            validation seeds, first round) it accepted 80 % instead of 73 %, 98.9 % of them right
            instead of 99.6 %.
        consistency_threshold: FixMatch's τ for the consistency term, in [0, 1] [FixMatch, .95].
        consistency_on: ``"all"`` synthetic images, or ``"unlabelled"`` ones alone, those that were
            not accepted, as summaries of the paper have it. In the ablation on digits all were
            worth 1.6 points more: the main head may doubt what the auxiliary heads said [ours].
        pseudo_weight, consistency_weight: factors of these terms [ours: 1, 1].
        orthogonality_weight: factor of mean |W_i·W_jᵀ| of same-view heads [ours: 0.01].
        auxiliary_weight: in the training stage the auxiliary heads go on learning from real and
            accepted images, on detached features, so that they follow the features as these move
            and change nothing else [ours: 1]. 0 freezes them after pretraining.
        labelled_view: ``"weak"`` or ``"strong"``, what the main head sees of real and accepted
            images [ours; FixMatch's is weak].

    Attributes:
        model: the classifier. ``wrapper.model.state_dict()`` has its own keys at any time.
        auxiliary_heads: the auxiliary heads, linear layers.

    Raises:
        ValueError: the final layer cannot be told (the message lists the candidates), has another
            number of classes than ``num_classes``, or an option is out of range.
        TypeError: ``model`` is no module, is compiled, or is wrapped already.

    Source: DreamDA, arXiv:2403.12803, section on AMST, whose code was not released; what the
    paper does not say is marked [ours].
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int | None = None,
        *,
        head: str | nn.Module | None = None,
        features: str | nn.Module | None = None,
        feature_dim: int | None = None,
        weak: View | None = None,
        strong: View | None = None,
        head_views: Sequence[str] = ("weak", "weak", "strong", "strong"),
        agreement: str = "all",
        confidence: str = "mean",
        confidence_threshold: float = 0.9,
        consistency_threshold: float = 0.95,
        consistency_on: str = "all",
        pseudo_weight: float = 1.0,
        consistency_weight: float = 1.0,
        orthogonality_weight: float = 0.01,
        auxiliary_weight: float = 1.0,
        labelled_view: str = "weak",
    ) -> None:
        super().__init__()
        if isinstance(model, AMSTWrapper):
            raise TypeError("model is wrapped already; wrap model.to_classifier().")
        check_model(model)
        check_rules(agreement, confidence, confidence_threshold)
        check_unit_interval("consistency_threshold", consistency_threshold)
        check_consistency_on(consistency_on)
        check_views("head_views", head_views)
        check_views("labelled_view", (labelled_view,))
        check_weights({
            "pseudo_weight": pseudo_weight,
            "consistency_weight": consistency_weight,
            "orthogonality_weight": orthogonality_weight,
            "auxiliary_weight": auxiliary_weight,
        })

        # Not a module: the layer that it holds must not be registered, and saved, twice.
        self._reader = FeatureReader(model, num_classes, head, features, feature_dim)
        self.model = model
        self.num_classes = self._reader.num_classes
        self.head_views = tuple(head_views)
        self.agreement, self.confidence = agreement, confidence
        self.confidence_threshold = confidence_threshold
        self.consistency_threshold, self.consistency_on = consistency_threshold, consistency_on
        self.pseudo_weight, self.consistency_weight = pseudo_weight, consistency_weight
        self.orthogonality_weight, self.auxiliary_weight = orthogonality_weight, auxiliary_weight
        self.labelled_view = labelled_view
        weak = WeakView() if weak is None else weak
        if strong is None:
            strong = StrongView(weak=weak) if isinstance(weak, WeakView) else StrongView()
        # A plain dictionary: a view that is a module must not become a part of the state_dict.
        self._views = {"weak": weak, "strong": strong}
        like = next(iter(self._reader.layer.parameters()), next(model.parameters()))
        sizes = self._reader.feature_dim, self.num_classes
        self.auxiliary_heads = nn.ModuleList(
            nn.Linear(*sizes, device=like.device, dtype=like.dtype) for _ in self.head_views
        )

    def forward(
        self,
        images: Tensor,
        targets: Tensor | None = None,
        synthetic: Tensor | None = None,
        seed_labels: Tensor | None = None,
        pseudo_labels: PseudoLabels | None = None,
        stage: str | None = None,
    ) -> Tensor | AMSTLosses:
        """The classifier's own answer; or, with ``stage``, a loss.

        ``stage="pretraining"`` is ``pretraining_loss(images, targets)`` and ``stage="training"``
        is ``losses(images, targets, synthetic, …)``: the way in where the wrapper is itself
        wrapped, as ``DistributedDataParallel`` counts only what passes through ``forward``. It
        needs ``find_unused_parameters=True``, since each stage leaves some heads alone.
        """
        if stage is None:
            return self.model(images)
        if stage == "pretraining":
            return self.pretraining_loss(images, targets)
        if stage == "training":
            return self.losses(images, targets, synthetic, seed_labels, pseudo_labels)
        raise ValueError(f'stage must be None, "pretraining" or "training", got {stage!r}.')

    def pretraining_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """L_pre: the auxiliary heads, each on its view of labelled images, and orthogonality.

        Mean over the heads of their cross-entropy, plus ``orthogonality_weight`` times the
        orthogonality term. Gradients reach the features and the auxiliary heads, not the main
        head. The mean over heads (not the sum) keeps the step size independent of their number.

        Args:
            images: (N, C, H, W).
            targets: class indices, (N,) integers, or soft labels, (N, classes), as MixUp gives.

        Raises:
            ValueError: targets out of range, empty batch, or logits that are not finite.
        """
        check_batch("images", images, targets, self.num_classes)
        features, _ = self.read_views(images, dict.fromkeys(self.head_views, slice(None)))
        auxiliary = auxiliary_loss(self.auxiliary_heads, self.head_views, features, targets)
        return auxiliary + self.orthogonality_weight * self.orthogonality()

    @torch.no_grad()
    def label(self, images: Tensor, seed_labels: Tensor | None = None) -> PseudoLabels:
        """What the auxiliary heads agree on, from the images as they are (evaluation view).

        Runs in eval mode and puts every module back into the mode that it was in.

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
        """``agree_and_confident`` with this wrapper's rules; probabilities (heads, N, classes)."""
        return agree_and_confident(
            probabilities,
            agreement=self.agreement,
            confidence=self.confidence,
            confidence_threshold=self.confidence_threshold,
            seed_labels=seed_labels,
        )

    def losses(
        self,
        real: Tensor,
        targets: Tensor,
        synthetic: Tensor | None = None,
        seed_labels: Tensor | None = None,
        pseudo_labels: PseudoLabels | None = None,
    ) -> AMSTLosses:
        """One training step: L_sup on real and accepted images, L_c on the synthetic ones.

        Gradients of the first three terms reach the features and the main head; those of the
        auxiliary and orthogonality terms the auxiliary heads only.

        Args:
            real: labelled images, (N, C, H, W).
            targets: class indices, (N,) integers, or soft labels, (N, classes).
            synthetic: images without trusted labels, (M, C, H, W); None or M = 0: none.
            seed_labels: a fifth vote for ``label``, (M,) integers, −1 where unknown.
            pseudo_labels: labels made before (of a pool); by default ``synthetic`` is labelled
                now.

        Raises:
            ValueError: targets out of range, a batch of one in front of BatchNorm, or logits
                that are not finite (no loss is returned, so no weight can become nan).
        """
        check_batch("real", real, targets, self.num_classes)
        if synthetic is None or len(synthetic) == 0:
            synthetic, pseudo_labels = real[:0], None
        elif pseudo_labels is None:
            pseudo_labels = self.label(synthetic, seed_labels)
        else:
            check_pseudo_labels(len(pseudo_labels), len(synthetic))
        return training_losses(self, real, targets, synthetic, pseudo_labels)

    def parameter_groups(
        self, lr: float, backbone_lr: float | None = None
    ) -> list[dict[str, object]]:
        """Groups for an optimizer: the heads at ``lr``, the features at ``backbone_lr``.

        Args:
            lr: learning rate of the main and the auxiliary heads (and of the features too, where
                ``backbone_lr`` is None).
            backbone_lr: learning rate of everything in front of the heads; smaller when it is
                pretrained.

        Returns:
            Two dictionaries with ``params``, ``lr`` and ``name``. Frozen parameters
            (``requires_grad=False``) are left out. Where the wrapper was made with ``features``,
            it cannot tell the main head apart, which then belongs to the features.
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
        self._reader.tap.detach()
        return self.model

    def extra_repr(self) -> str:
        return (
            f"head={self._reader.name!r}, num_classes={self.num_classes}, "
            f"head_views={self.head_views}, agreement={self.agreement!r}, "
            f"confidence={self.confidence!r}, confidence_threshold={self.confidence_threshold}"
        )

    def orthogonality(self) -> Tensor:
        """The orthogonality term of the auxiliary heads' weights."""
        return orthogonality_loss([head.weight for head in self.auxiliary_heads], self.head_views)

    def read_views(
        self, images: Tensor, rows: Mapping[str, slice]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features and logits by view, where each view is made of its rows of the images.

        One pass over everything, so that BatchNorm sees one batch and each weight is read once.
        """
        views = [apply_view(name, self._views[name], images[part]) for name, part in rows.items()]
        sizes = [len(view) for view in views]
        answers = self._reader.read(self.model, torch.cat(views))
        return tuple(dict(zip(rows, each.split(sizes), strict=True)) for each in answers)
