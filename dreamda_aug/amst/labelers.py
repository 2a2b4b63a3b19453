"""Other ways to label synthetic images, with the interface of AMST, to compare it with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamda_aug.amst.checks import check_unit_interval
from dreamda_aug.amst.features import evaluation_mode
from dreamda_aug.amst.heads import main_logits
from dreamda_aug.amst.losses import PseudoLabels


class Labeler(Protocol):
    """Anything that labels a batch of images; ``AMSTWrapper`` is one too."""

    def label(self, images: Tensor, seed_labels: Tensor | None = None) -> PseudoLabels:
        """Labels for images (N, C, H, W).

        Args:
            images: (N, C, H, W).
            seed_labels: labels of the seed images, (N,) integers; −1 or None where unknown.
        """
        ...


class SeedLabeler:
    """Every synthetic image keeps the label of its seed image: what most pipelines do."""

    def label(self, images: Tensor, seed_labels: Tensor | None = None) -> PseudoLabels:
        """The seed labels: accepted with confidence 1 where known (≥ 0), rejected where −1.

        Raises:
            ValueError: no seed labels, or not one per image.
        """
        if seed_labels is None or seed_labels.shape != (len(images),):
            found = "none" if seed_labels is None else f"shape {tuple(seed_labels.shape)}"
            raise ValueError(
                f"SeedLabeler needs seed_labels of shape ({len(images)},), got {found}: "
                "label(images, seed_labels)."
            )
        known = seed_labels >= 0
        return PseudoLabels(seed_labels.clamp(min=0), known.float(), known.float(), known)


class SingleHeadLabeler:
    """Pseudo-labels of one classifier: its most probable class, or all its probabilities.

    Args:
        classifier: images -> logits; runs in eval mode. An ``AMSTWrapper`` labels with its main
            head.
        confidence_threshold: smallest accepted probability, in [0, 1]; None: 0.95 for hard
            labels [FixMatch], 0 (all are accepted) for soft ones, which state their own
            confidence.
        soft: return probabilities, (N, classes), in place of class indices.

    Source: hard: Lee 2013, "Pseudo-Label"; soft: the baseline named in arXiv:2403.12803.
    """

    def __init__(
        self,
        classifier: nn.Module,
        confidence_threshold: float | None = None,
        soft: bool = False,
    ) -> None:
        if confidence_threshold is None:
            confidence_threshold = 0.0 if soft else 0.95
        check_unit_interval("confidence_threshold", confidence_threshold)
        self.classifier, self.soft = classifier, soft
        self.confidence_threshold = confidence_threshold

    @torch.no_grad()
    def label(self, images: Tensor, seed_labels: Tensor | None = None) -> PseudoLabels:
        """Labels from the images alone; ``seed_labels`` are ignored."""
        with evaluation_mode(self.classifier):
            logits = main_logits(self.classifier(images))
        if not logits.isfinite().all():
            raise ValueError("the classifier's logits are nan or infinite; check its weights.")
        return _from_probabilities(logits.float().softmax(1), self.confidence_threshold, self.soft)


class CLIPLabeler:
    """Zero-shot labels of a CLIP model from transformers.

    Args:
        class_names: one per class, in label order.
        model: hub id, local folder, or a ``transformers.CLIPModel``.
        tokenizer: with a model object, its tokenizer; otherwise it is loaded with the model.
        prompt: sentence with ``{}`` in place of the class name [DreamDA's, as released].
        confidence_threshold: smallest accepted probability, in [0, 1]; 0 accepts all.
        soft: return probabilities in place of class indices.
        mean, std: CLIP's normalisation, per channel [the constants of OpenAI's models].
        device: where the model runs; None: it stays where it is, or is loaded onto the CPU.

    Raises:
        ValueError: no class names, or a prompt without ``{}``.
        OSError: the model is neither a local folder nor within reach on the hub.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        model: str | nn.Module = "openai/clip-vit-base-patch32",
        *,
        tokenizer: Any = None,
        prompt: str = "A photo of a {}.",
        confidence_threshold: float = 0.0,
        soft: bool = False,
        mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(class_names, str) or len(class_names) < 2:
            raise ValueError(f"class_names must be at least two names, got {class_names!r}.")
        if "{}" not in prompt:
            raise ValueError(f"prompt must contain {{}} for the class name, got {prompt!r}.")
        check_unit_interval("confidence_threshold", confidence_threshold)
        if isinstance(model, nn.Module) and tokenizer is None:
            raise ValueError("a model object needs its tokenizer: CLIPLabeler(…, tokenizer=…).")
        # Any: transformers is an extra, and its classes are not known here.
        clip: Any = model
        if not isinstance(model, nn.Module):
            clip, tokenizer = _load_clip(model)
        self.model: Any = (clip if device is None else clip.to(device)).eval()
        self.class_names = tuple(class_names)
        self.confidence_threshold, self.soft = confidence_threshold, soft
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)
        sentences = [prompt.format(name.replace("_", " ")) for name in class_names]
        tokens = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            embeddings = self.model.get_text_features(
                input_ids=tokens["input_ids"].to(self.model.device),
                attention_mask=tokens["attention_mask"].to(self.model.device),
            )
        self._text = F.normalize(_vectors(embeddings).float(), dim=1)

    @torch.no_grad()
    def label(self, images: Tensor, seed_labels: Tensor | None = None) -> PseudoLabels:
        """Labels of images (N, 1 or 3, H, W) in [0, 1]; ``seed_labels`` are ignored."""
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.is_floating_point():
            raise ValueError(
                "images must be floats (N, 1 or 3, H, W) in [0, 1], got "
                f"{images.dtype} of shape {tuple(images.shape)}."
            )
        if len(images) == 0:
            nothing = images.new_zeros(0, len(self.class_names))
            return _from_probabilities(nothing, self.confidence_threshold, self.soft)
        if not (images.min() > -0.02 and images.max() < 1.02):
            raise ValueError(
                "images must lie in [0, 1] and not be normalised, got "
                f"[{images.min():.3g}, {images.max():.3g}]."
            )
        side = self.model.config.vision_config.image_size
        pixels = F.interpolate(
            images.to(self.model.device).float().expand(-1, 3, -1, -1),
            size=(side, side),
            mode="bicubic",
            antialias=True,
        ).clamp(0, 1)
        mean, std = self.mean.to(pixels.device), self.std.to(pixels.device)
        pixels = (pixels - mean[:, None, None]) / std[:, None, None]
        embeddings = self.model.get_image_features(pixel_values=pixels.to(self.model.dtype))
        similarity = F.normalize(_vectors(embeddings).float(), dim=1) @ self._text.T
        probabilities = (self.model.logit_scale.exp().float() * similarity).softmax(1)
        return _from_probabilities(
            probabilities.to(images.device), self.confidence_threshold, self.soft
        )


def _from_probabilities(probabilities: Tensor, threshold: float, soft: bool) -> PseudoLabels:
    confidence, labels = probabilities.max(1)
    return PseudoLabels(
        labels=probabilities if soft else labels,
        confidence=confidence,
        agreement=torch.ones_like(confidence),
        mask=confidence >= threshold,
    )


def _vectors(embeddings: Any) -> Tensor:
    """transformers 4 returns the tensor itself, transformers 5 an object that holds it."""
    vectors: Tensor = embeddings if isinstance(embeddings, Tensor) else embeddings.pooler_output
    return vectors


def _load_clip(source: str) -> tuple[nn.Module, Any]:
    try:
        from transformers import AutoTokenizer, CLIPModel
    except ImportError as error:
        raise ImportError("CLIPLabeler needs transformers: pip install transformers.") from error
    try:
        return CLIPModel.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise OSError(
            f"the CLIP model {source!r} is neither a local folder nor within reach on the hub; "
            "without a connection, download it elsewhere (hf download "
            f"{source} --local-dir FOLDER) and give CLIPLabeler(…, model=FOLDER)."
        ) from error
