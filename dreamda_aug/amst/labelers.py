"""Other ways to label synthetic images, with the interface of AMST, to compare it with."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamda_aug.amst.final_layer import evaluation_mode, main_logits
from dreamda_aug.amst.losses import PseudoLabels
from dreamda_aug.arguments import real


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

    def __init__(
        self, class_names: Sequence[str], model: str = "openai/clip-vit-base-patch32", *,
        prompt: str = "A photo of a {}.", device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if isinstance(class_names, str) or len(class_names) < 2:
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
            self._text = _directions(self.clip.get_text_features(**tokens))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1 or 3, H, W) in [0, 1] -> logits (N, classes).

        Raises:
            ValueError: images outside [0, 1], such as normalised ones.
        """
        if len(images) == 0:
            return images.new_zeros(0, len(self._text))
        if not (images.min() > -0.02 and images.max() < 1.02):
            raise ValueError("images must lie in [0, 1] and not be normalised, got "
                             f"[{images.min():.3g}, {images.max():.3g}].")
        pixels = self._processor(images=[*images.float().expand(-1, 3, -1, -1)], do_rescale=False,
                                 return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.clip.device, self.clip.dtype)
        similarity = _directions(self.clip.get_image_features(pixels)) @ self._text.T
        return (self.clip.logit_scale.exp().float() * similarity).to(images.device)


def _directions(features: Any) -> Tensor:
    # transformers 4 returns the tensor itself, transformers 5 an object that holds it
    vectors = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(vectors.float(), dim=1)
