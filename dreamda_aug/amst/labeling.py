"""Who labels synthetic images, and what a round of labeling accepted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamda_aug.amst.rules import PseudoLabels
from dreamda_aug.arguments import checked, real
from dreamda_aug.final_layer import evaluation_mode, main_logits

# A class is suspicious beyond this multiple of an equal share of the accepted labels [ours].
_CROWDED = 3.0


class Labeler(Protocol):
    """Anything that labels a batch of images; ``AMSTWrapper`` is one too."""

    def label(self, images: Tensor, seed_labels: Tensor | None = None) -> PseudoLabels:
        """Labels for images (N, C, H, W) made of images with these labels, (N,), −1 if unknown."""
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
                "label(images, seed_labels).")
        known = seed_labels >= 0
        return PseudoLabels(seed_labels.clamp(min=0), known.float(), known.float(), known)


class SingleHeadLabeler:
    """Pseudo-labels of one classifier: its most probable class, or all its probabilities.

    Args:
        classifier: images -> logits; runs in eval mode. An ``AMSTWrapper`` labels with its main
            head; a ``CLIPClassifier``, a probe or a diffusion classifier serve as well.
        confidence_threshold: smallest accepted probability, in [0, 1], or None for 0.95 with hard
            labels [FixMatch] and 0 with soft ones, which state their own confidence.
        soft: return probabilities, (N, classes), in place of class indices.

    Raises:
        ValueError: a threshold outside [0, 1].

    Source: hard: Lee 2013, "Pseudo-Label"; soft: the baseline named in arXiv:2403.12803.
    """

    @checked
    def __init__(
        self, classifier: nn.Module, confidence_threshold: float | None = None, soft: bool = False
    ) -> None:
        threshold = (0.0 if soft else 0.95) if confidence_threshold is None else \
            confidence_threshold
        self.confidence_threshold = real("confidence_threshold", threshold, "lie in [0, 1]", 0, 1)
        self.classifier, self.soft = classifier, soft

    @torch.no_grad()
    def label(self, images: Tensor, seed_labels: Tensor | None = None) -> PseudoLabels:
        """Labels from the images alone; ``seed_labels`` are ignored.

        Raises:
            ValueError: logits that are not finite, or only one logit.
        """
        with evaluation_mode(self.classifier):
            logits = main_logits(self.classifier(images))
        if not logits.isfinite().all():
            raise ValueError("the classifier's logits are nan or infinite; check its weights.")
        probabilities = logits.float().softmax(1)
        confidence, labels = probabilities.max(1)
        return PseudoLabels(probabilities if self.soft else labels, confidence,
                            torch.ones_like(confidence), confidence >= self.confidence_threshold)


class CLIPClassifier(nn.Module):
    """A CLIP model from transformers as a zero-shot classifier of images in [0, 1].

    ``SingleHeadLabeler(CLIPClassifier(names), confidence_threshold=0)`` labels with it.

    Args:
        class_names: one per class, in label order, at least two.
        model: hub id or local folder, with the model's tokenizer and image processor.
        prompt: sentence with ``{}`` in place of the class name [DreamDA's, as released].
        device: where the model runs.

    Raises:
        ValueError: fewer than two class names, or a prompt without ``{}``.
        ImportError: transformers is not installed.
        OSError: the model is neither a local folder nor within reach on the hub.
    """

    @checked
    def __init__(
        self, class_names: Sequence[str], model: str = "openai/clip-vit-base-patch32", *,
        prompt: str = "A photo of a {}.", device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if len(class_names) < 2:
            raise ValueError(f"class_names must be at least two names, got {class_names!r}.")
        if "{}" not in prompt:
            raise ValueError(f"prompt must contain {{}} for the class name, got {prompt!r}.")
        from transformers import CLIPModel, CLIPProcessor

        clip: Any = CLIPModel.from_pretrained(model)  # transformers is an extra without types
        self._processor: Any = CLIPProcessor.from_pretrained(model)
        self.clip = clip.to(device).eval()
        sentences = [prompt.format(name.replace("_", " ")) for name in class_names]
        tokens = self._processor(text=sentences, padding=True, truncation=True,
                                 return_tensors="pt").to(device)
        with torch.no_grad():
            text = self.clip.get_text_features(**tokens).pooler_output
        self._text = F.normalize(text.float(), dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1 or 3, H, W) in [0, 1] -> logits (N, classes).

        Raises:
            ValueError: images outside [0, 1], such as normalised ones.
        """
        if not (images.min() > -0.02 and images.max() < 1.02):
            raise ValueError("images must lie in [0, 1] and not be normalised, got "
                             f"[{images.min():.3g}, {images.max():.3g}].")
        pixels = self._processor(images=[*images.float().expand(-1, 3, -1, -1)], do_rescale=False,
                                 return_tensors="pt")["pixel_values"]
        seen = self.clip.get_image_features(pixels.to(self.clip.device, self.clip.dtype))
        similarity = F.normalize(seen.pooler_output.float(), dim=1) @ self._text.T
        return (self.clip.logit_scale.exp().float() * similarity).to(images.device)


class CollapseWarning(UserWarning):
    """No pseudo-label is accepted, or the accepted ones miss a class or crowd into one."""


@dataclass(frozen=True)
class RoundReport:
    """One labeling of the pool, or with ``RunPlan(online=True)`` one epoch of it.

    Attributes:
        epoch: training epochs done before the round.
        images: images that were labeled.
        agreement: share of images on which all votes agreed, in [0, 1].
        confidence: mean confidence over all images, in [0, 1].
        class_counts: accepted images per class.
        seed_label_agreement: share of the accepted images with a known seed label whose
            pseudo-label is that seed label; None if there are no such images.
        accuracy: share of the accepted images whose pseudo-label is the true label; None if no
            true label is known.
    """

    epoch: int
    images: int
    agreement: float
    confidence: float
    class_counts: tuple[int, ...]
    seed_label_agreement: float | None = None
    accuracy: float | None = None

    @classmethod
    def of(
        cls, epoch: int, labels: PseudoLabels, seed_labels: Tensor, truth: Tensor, classes: int
    ) -> RoundReport:
        """Sum up a round; ``seed_labels`` and ``truth`` are (N,) integers, −1 where unknown."""
        found, mask = labels.hard_labels, labels.mask

        def matches(reference: Tensor) -> float | None:
            known = mask & (reference >= 0)
            return (found == reference)[known].float().mean().item() if known.any() else None

        counts = torch.bincount(found[mask], minlength=classes).tolist()
        return cls(epoch, len(mask), (labels.agreement == 1).float().mean().item(),
                   labels.confidence.mean().item(), tuple(counts), matches(seed_labels),
                   matches(truth))

    @property
    def accepted(self) -> int:
        """Number of accepted images."""
        return sum(self.class_counts)

    @property
    def accepted_share(self) -> float:
        """The same as a share of the images, in [0, 1]."""
        return self.accepted / self.images

    def warn_of_collapse(self) -> None:
        """Warn if no image was accepted, or a class has none or far more than an equal share."""
        counts, found = self.class_counts, []
        if not self.accepted:
            found = [f"no image of {self.images} was accepted (all votes agreed on "
                     f"{self.agreement:.0%}, mean confidence {self.confidence:.2f}), so training "
                     "continues with real images and the consistency term"]
        elif 0 in counts:
            missing = [number for number, count in enumerate(counts) if not count]
            found = [f"accepted labels miss the classes {missing}"]
        crowded = [f"{number} ({count / self.accepted:.0%}, expected {1 / len(counts):.0%})"
                   for number, count in enumerate(counts)
                   if count * len(counts) > _CROWDED * self.accepted]
        if crowded:
            found.append(f"accepted labels crowd into class {', '.join(crowded)}")
        if found:
            warnings.warn(f"{'; '.join(found)}. Pretrain longer, change confidence_threshold, or "
                          "use distribution_alignment=True.", CollapseWarning, stacklevel=4)
