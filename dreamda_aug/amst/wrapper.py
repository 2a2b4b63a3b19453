"""AMSTWrapper: five heads on the features of any classifier."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamda_aug.amst.rules import (
    AMSTLosses,
    PseudoLabels,
    ViewName,
    VotingRule,
    agree_and_confident,
    consistency_terms,
    join_targets,
    orthogonality_loss,
)
from dreamda_aug.amst.views import StrongView, View, WeakView, apply_view
from dreamda_aug.arguments import checked, real
from dreamda_aug.final_layer import (
    FeatureReader,
    check_classes,
    describe_candidates,
    evaluation_mode,
    main_logits,
)
from dreamda_aug.inputs.samples import check_integers

# f1ʷ, f2ʷ, f1ˢ, f2ˢ: the view of labeled images that each auxiliary head learns from [paper].
HEAD_VIEWS: tuple[ViewName, ...] = ("weak", "weak", "strong", "strong")


class AMSTWrapper(nn.Module):
    """Asymmetric multi-head self-training around any classifier of images.

    The classifier's own final layer is the main head f5. Four auxiliary heads on the same features
    learn from labeled images, two from their weak and two from their strong view. Together they
    label the synthetic images. Called with images alone, the wrapper returns exactly what the
    classifier returns.

    Args:
        model: a classifier, images (N, C, H, W) -> logits (N, classes), with at least two classes.
            Wrap it before you compile or distribute it: ``torch.compile(AMSTWrapper(model))``.
        head: the final classification layer or its name, where it is not found automatically: a
            Linear, also of a subclass, or 1×1 Conv2d layer.
        weak, strong: views, functions from a batch of images to a batch of images. Default
            ``WeakView()`` and ``StrongView(weak=weak)``, for images in [0, 1]; ``StrongView``
            describes how to use it with normalised images. ``PerImage`` makes a view of one of
            torchvision's transforms.
        main_view: the view that the main head sees of real and accepted images, ``"weak"`` or
            ``"strong"`` [ours; FixMatch's is weak].
        voting: when the auxiliary heads' votes make a label, or None for ``VotingRule()``.
        consistency_threshold: FixMatch's τ, in [0, 1]: a synthetic image counts in the consistency
            term where the main head gives its most probable class at least this probability in the
            weak view [FixMatch].
        consistency_weight: factor of the consistency term in the loss, ≥ 0 [ours].
        orthogonality_weight: factor of the mean ``|W_i·W_jᵀ|`` of auxiliary heads that see the same
            view, ≥ 0 [ours].

    Attributes:
        model: the classifier. ``wrapper.model.state_dict()`` always has the classifier's own keys.
        auxiliary_heads: the auxiliary heads, four linear layers.
        num_classes: number of classes.
        voting: as given; another value in its place changes it during training.

    Raises:
        ValueError: the final layer is not found (the message lists the candidates) or has a single
            output; ``model`` is compiled or wrapped already; or an argument breaks its rule.

    Source: DreamDA, arXiv:2403.12803, section on AMST, whose code was not released; ``rules``
    marks what the paper leaves open.
    """

    @checked
    def __init__(
        self, model: nn.Module, *, head: str | nn.Module | None = None,
        weak: View | None = None, strong: View | None = None,
        main_view: ViewName = "weak", voting: VotingRule | None = None,
        consistency_threshold: float = 0.95, consistency_weight: float = 1.0,
        orthogonality_weight: float = 0.01,
    ) -> None:
        super().__init__()
        # the second is torch's own mark of a compiled module
        if isinstance(model, AMSTWrapper) or hasattr(model, "_orig_mod"):
            raise ValueError("model must be neither wrapped nor compiled already; wrap "
                             "model.to_classifier(), and compile the wrapper.")
        self.main_view: ViewName = main_view
        self.voting = VotingRule() if voting is None else voting
        self.consistency_threshold = real(
            "consistency_threshold", consistency_threshold, "lie in [0, 1]", 0, 1)
        self.consistency_weight = real("consistency_weight", consistency_weight, "be >= 0", 0)
        self.orthogonality_weight = real("orthogonality_weight", orthogonality_weight, "be >= 0", 0)
        # Not a module: the layer that it holds must not be registered, and saved, twice.
        self._reader = FeatureReader(model, head)
        check_classes(self._reader.num_classes, f'the final layer "{self._reader.name}"')
        self.model, self.num_classes = model, self._reader.num_classes
        weak = WeakView() if weak is None else weak
        start = weak if isinstance(weak, WeakView) else WeakView()
        # A plain dictionary: a view that is a module must not become a part of the state_dict.
        self._view_functions: dict[ViewName, View] = {
            "weak": weak, "strong": StrongView(weak=start) if strong is None else strong}
        like = self._reader.layer.weight
        self.auxiliary_heads = nn.ModuleList(
            nn.Linear(self._reader.feature_dim, self.num_classes, device=like.device,
                      dtype=like.dtype) for _ in HEAD_VIEWS)

    def forward(
        self, images: Tensor, targets: Tensor | None = None, synthetic: Tensor | None = None,
        pseudo_labels: PseudoLabels | None = None,
        stage: Literal["pretraining", "training"] | None = None,
    ) -> Any:
        """What the classifier itself returns; or, with ``stage``, a loss.

        ``"pretraining"`` is ``pretraining_loss(images, targets)`` and ``"training"`` is
        ``losses(images, targets, synthetic, …)``, for a wrapper in ``DistributedDataParallel``,
        which averages the gradients only of what passes through ``forward``. It needs
        ``find_unused_parameters=True``, because each stage leaves some heads out.

        Raises:
            ValueError: another stage, or a stage without targets.
        """
        if stage is None:
            return self.model(images)
        if stage not in ("pretraining", "training") or targets is None:
            raise ValueError('stage must be None, "pretraining" or "training", the last two with '
                             f"targets: wrapper(images, targets, stage=…); got {stage!r}.")
        if stage == "pretraining":
            return self.pretraining_loss(images, targets)
        return self.losses(images, targets, synthetic, pseudo_labels)

    def pretraining_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """L_pre: the auxiliary heads, each on its view of labeled images, and orthogonality.

        Mean over the heads of their cross-entropy, plus the orthogonality term by its weight.
        Gradients reach the features and the auxiliary heads, not the main head.

        Args:
            images: (N, C, H, W).
            targets: class indices, (N,) integers, or soft labels, (N, classes), as MixUp gives.

        Raises:
            ValueError: targets out of range, empty batch, or logits that are not finite.

        Source: DreamDA, arXiv:2403.12803, method figure.
        """
        self._check_batch("images", images, targets)
        features, _ = self._read_views(images, HEAD_VIEWS)
        return (self._auxiliary(features, targets)
                + self.orthogonality_weight * self._orthogonality())

    @torch.no_grad()
    def label(self, images: Tensor, seed_labels: Tensor | None = None) -> PseudoLabels:
        """The labels that the auxiliary heads agree on, for images without augmentation.

        Runs in eval mode and puts every module back into its own earlier mode.

        Args:
            images: (N, C, H, W), N ≥ 0.
            seed_labels: ignored; a ``Labeler`` has this argument.

        Raises:
            ValueError: logits that are not finite.
        """
        return agree_and_confident(self.head_probabilities(images), self.voting)

    @torch.no_grad()
    def head_probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities of every auxiliary head in eval mode, (heads, N, classes)."""
        with evaluation_mode(self):
            features, _ = self._read(images)
            logits = [head(features).float() for head in self.auxiliary_heads]
            return torch.stack(logits).softmax(2)

    def losses(
        self, real: Tensor, targets: Tensor, synthetic: Tensor | None = None,
        pseudo_labels: PseudoLabels | None = None,
    ) -> AMSTLosses:
        """One training step: L_sup on real and accepted images, L_c on the synthetic ones.

        Gradients of the supervised, pseudo and consistency terms reach the features and the main
        head; those of the auxiliary and orthogonality terms reach the auxiliary heads only.

        Args:
            real: labeled images, (N, C, H, W).
            targets: class indices, (N,) integers, or soft labels, (N, classes).
            synthetic: images without trusted labels, (M, C, H, W), or None or M = 0 for none.
            pseudo_labels: labels made earlier, such as those of a pool, or None to label
                ``synthetic`` now.

        Raises:
            ValueError: targets out of range, or logits that are not finite (no loss is returned,
                so no weight can become nan).

        Source: DreamDA, arXiv:2403.12803, method figure; the form of the terms is ours (see
        ``AMSTLosses``).
        """
        self._check_batch("real", real, targets)
        if synthetic is None or len(synthetic) == 0:
            synthetic, labels = real[:0], targets[:0]
            accepted = real.new_zeros(0, dtype=torch.bool)
        else:
            pseudo_labels = self.label(synthetic) if pseudo_labels is None else pseudo_labels
            if len(pseudo_labels) != len(synthetic):
                raise ValueError("pseudo_labels must be one for each synthetic image, got "
                                 f"{len(pseudo_labels)} for {len(synthetic)}.")
            accepted, labels = pseudo_labels.mask, pseudo_labels.labels[pseudo_labels.mask]
        # The labeled pool of the paper, P_L, comes first; the images left unlabeled follow.
        images = torch.cat([real, synthetic[accepted], synthetic[~accepted]])
        labeled = len(real) + int(accepted.sum())
        compared = len(synthetic) if self.consistency_weight else 0
        # Heads learn from the first rows in both views; consistency compares the last ones.
        images = images if compared else images[:labeled]
        features, logits = self._read_views(images, (self.main_view, *HEAD_VIEWS))
        of_real, of_accepted = logits[self.main_view][:labeled].tensor_split([len(real)])
        supervised = F.cross_entropy(of_real, targets)
        pseudo = F.cross_entropy(of_accepted, labels, reduction="none").sum()
        pseudo = pseudo / max(1, len(synthetic))
        weak, strong = (logits[view][len(images) - compared:] for view in ("weak", "strong"))
        consistency = consistency_terms(weak, strong, self.consistency_threshold).sum()
        consistency = consistency / max(1, compared)
        fixed = {name: each[:labeled].detach() for name, each in features.items()}
        auxiliary = self._auxiliary(fixed, join_targets(targets, labels, self.num_classes))
        orthogonality = self._orthogonality()
        total = (supervised + pseudo + self.consistency_weight * consistency + auxiliary
                 + self.orthogonality_weight * orthogonality)
        return AMSTLosses(total, supervised, pseudo, consistency, auxiliary, orthogonality,
                          accepted.float().mean())

    def parameter_groups(
        self, lr: float, backbone_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Groups for an optimizer: the heads at ``lr``, the features at ``backbone_lr``.

        Args:
            lr: learning rate of the main and the auxiliary heads.
            backbone_lr: learning rate of everything in front of the heads, smaller when it is
                pretrained, or None for ``lr``.

        Returns:
            Two dictionaries with ``params``, ``lr`` and ``name``. Frozen parameters
            (``requires_grad=False``) are left out.
        """
        heads = {*self.auxiliary_heads.parameters(), *self._reader.layer.parameters()}
        rates = {"features": lr if backbone_lr is None else backbone_lr, "heads": lr}
        return [{"params": [p for p in self.parameters()
                            if p.requires_grad and (p in heads) == (name == "heads")],
                 "lr": rate, "name": name} for name, rate in rates.items()]

    def to_classifier(self) -> nn.Module:
        """The wrapped classifier, free of our hook until the wrapper is trained further."""
        self._reader.detach()
        return self.model

    def _auxiliary(self, features: Mapping[ViewName, Tensor], targets: Tensor) -> Tensor:
        """Mean cross-entropy of the auxiliary heads, each on the features of its own view."""
        return torch.stack([
            F.cross_entropy(head(features[view]).float(), targets, reduction="none")
            for head, view in zip(self.auxiliary_heads, HEAD_VIEWS, strict=True)]).mean()

    def _orthogonality(self) -> Tensor:
        return orthogonality_loss([head.weight for head in self.auxiliary_heads])

    def _read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features, (N, D), and float32 logits, (N, classes), all of them finite."""
        features, output = self._reader.read(self.model, images)
        logits = main_logits(output)
        if logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the classifier returns logits of {logits.shape[1]} classes, but "
                f'"{self._reader.name}" has {self.num_classes}: name the final layer, head="…". '
                + describe_candidates(self.model))
        broken = len(images) - int((logits.isfinite().all(1) & features.isfinite().all(1)).sum())
        if broken:
            raise ValueError(
                f"features or logits are nan or infinite for {broken} of {len(images)} images: "
                "look at the images (finite?), the learning rate, and the weights.")
        return features, logits.float()

    def _read_views(
        self, images: Tensor, views: Iterable[ViewName]
    ) -> tuple[dict[ViewName, Tensor], dict[ViewName, Tensor]]:
        """Features and logits of the images in each view.

        One pass over all views, so that BatchNorm sees one batch and each weight is read once.
        """
        names = list(dict.fromkeys(views))
        made = [apply_view(self._view_functions[name], images) for name in names]
        features, logits = self._read(torch.cat(made))
        sizes = [len(images)] * len(names)
        return (dict(zip(names, features.split(sizes), strict=True)),
                dict(zip(names, logits.split(sizes), strict=True)))

    def _check_batch(self, name: str, images: Tensor, targets: Tensor) -> None:
        if len(images) == 0:
            raise ValueError(f"{name} must hold at least one labeled image, got none.")
        if not targets.is_floating_point():
            check_integers("targets", targets, len(images), 0, self.num_classes - 1)
            return
        shape = (len(images), self.num_classes)
        if targets.shape != shape or (targets < 0).any() or (
                (targets.sum(1) - 1).abs() > 1e-2).any():
            raise ValueError(
                f"targets must be class indices ({len(images)},) or soft labels {shape}, ≥ 0 and "
                f"of sum 1 in every row, got {targets.dtype} of shape {tuple(targets.shape)}.")
