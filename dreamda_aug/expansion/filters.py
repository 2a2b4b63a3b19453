"""Which synthetic images are doubtful: wrong class, copy of another image, too close to the seed.

Source: ours, on the measures of `dreamda_aug.metrics.distances`.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dreamda_aug.arguments import check_fields, checked, real, whole
from dreamda_aug.bundled import fashion_mnist_judge
from dreamda_aug.expansion.seeds import Unreadable, read_seed
from dreamda_aug.files import open_file, regular_file
from dreamda_aug.final_layer import main_logits
from dreamda_aug.inputs.pixels import fit_to
from dreamda_aug.inputs.seed_images import SeedImages
from dreamda_aug.machine_paths import without_paths
from dreamda_aug.metrics.distances import nearest
from dreamda_aug.metrics.features import IMAGENET_MEAN, IMAGENET_STD, build_classifier
from dreamda_aug.models import DiffusionModel


class Batch(NamedTuple):
    """Images of a batch, as filters see them.

    Attributes:
        images: synthetic images, (B, C, H, W) in [0, 1], on the CPU.
        seed_images: the seed image of each, same shape; ``seed_index`` is its number.
        events: what the guards did for each.
    """

    images: Tensor
    seed_images: Tensor
    seed_index: Sequence[int]
    labels: Sequence[int]
    events: Sequence[Sequence[str]]

    @property
    def distances(self) -> Tensor:
        """Root mean square pixel distance of each from its seed image, (B,), in [0, 1]."""
        return (self.images - self.seed_images).flatten(1).square().mean(1).sqrt()


class Filter(Protocol):
    """Scores images, and flags some. It must be deterministic for a batch.

    Attributes:
        name: of its flag.
    """

    @property
    def name(self) -> str: ...

    def describe(self) -> dict[str, Any]:
        """Everything that its scores depend on, as JSON, for the settings of a dataset."""
        own = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"name": self.name, **own}

    def prepare(self, images: SeedImages, model: DiffusionModel) -> None:
        """Called once before the first batch."""
        return

    def measure(self, batch: Batch) -> tuple[list[float], list[bool]]:
        """A score for each image, and whether it is flagged."""
        ...


class GuardEvents(Filter):
    """Objects to images that a guard replaced by their seed image. The score is 1 for these."""

    name = "guard"

    def measure(self, batch: Batch) -> tuple[list[float], list[bool]]:
        replaced = [not {"replaced", "unsafe"}.isdisjoint(events) for events in batch.events]
        return [float(each) for each in replaced], replaced


@dataclass
class SeedCopy(Filter):
    """Objects to what hardly differs from its own seed image: the perturbation is too weak.

    The score is the root mean square pixel distance, in [0, 1].

    Args:
        threshold: >= 0; 0.02 is about 5 of 255 grey levels [ours].
    """

    threshold: float = 0.02
    name = "seed-copy"

    def __post_init__(self) -> None:
        check_fields(self)
        real("threshold", self.threshold, "be >= 0", 0)

    def measure(self, batch: Batch) -> tuple[list[float], list[bool]]:
        distances = batch.distances
        return distances.tolist(), (distances < self.threshold).tolist()


@dataclass
class OtherImageCopy(Filter):
    """Objects to what looks like a copy of a training image other than the seed image.

    The score is the distance to the nearest other seed image, in units of the median such
    distance between real images; 1 is as far apart as real neighbours are. An image is a copy if
    it lies below ``threshold`` while its own seed image does not.

    Args:
        threshold: >= 0 [ours].
        size: side of the pictures that are compared, in pixels.
    """

    threshold: float = 0.3
    size: int = 16
    name = "copy"

    def __post_init__(self) -> None:
        check_fields(self)
        real("threshold", self.threshold, "be >= 0", 0)
        whole("size", self.size, 1)

    def prepare(self, images: SeedImages, model: DiffusionModel) -> None:
        rows = {}
        for index in range(len(images)):
            with suppress(Unreadable):  # counted when its turn comes
                rows[index] = self._features(fit_to(read_seed(images, index).values, model))
        if len(rows) < 2:
            raise ValueError("the copy filter needs at least 2 readable seed images.")
        self._training = torch.cat(list(rows.values()))
        self._row = {index: row for row, index in enumerate(rows)}
        spacing, _ = nearest(self._training, self._training, exclude=torch.arange(len(rows)))
        self._scale = max(spacing.median().item(), 1e-12)

    def measure(self, batch: Batch) -> tuple[list[float], list[bool]]:
        own = torch.tensor([self._row[index] for index in batch.seed_index])
        distance, other = nearest(self._features(batch.images), self._training, exclude=own)
        between = (self._training[own] - self._training[other]).double().norm(dim=1)
        scores = distance / self._scale
        copies = (scores < self.threshold) & (between / self._scale >= self.threshold)
        return scores.tolist(), copies.tolist()

    def _features(self, images: Tensor) -> Tensor:
        small: Tensor = F.resize(images.float(), [self.size, self.size], antialias=True)
        return small.flatten(1)


@dataclass
class LabelAgreement(Filter):
    """Flags images that a classifier does not assign to the class of their seed image.

    The score is the classifier's probability of the seed's class.

    Args:
        classifier: images (B, C, H, W) in [0, 1], of the model's size, to logits (B, K), in
            the source's class order.
        identity: name of the classifier for the record, such as a file name and its checksum.
    """

    classifier: Callable[[Tensor], Tensor]
    identity: str
    name = "label"

    def __post_init__(self) -> None:
        check_fields(self)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "classifier": without_paths(self.identity)}

    @torch.no_grad()
    def measure(self, batch: Batch) -> tuple[list[float], list[bool]]:
        try:
            logits = main_logits(torch.as_tensor(self.classifier(batch.images))).float().cpu()
        except RuntimeError as error:
            raise ValueError(f"the classifier {self.identity[:40]} cannot take images of shape "
                             f"{tuple(batch.images.shape)}: {error}") from error
        labels = torch.tensor(batch.labels)
        if (len(logits) != len(labels) or logits.shape[1] <= labels.max()
                or not logits.isfinite().all()):
            raise ValueError(
                f"the classifier must give finite logits (B, K) with K > {labels.max().item()}, "
                f"the largest label, got {tuple(logits.shape)} for {len(labels)} images.")
        scores = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        return scores.tolist(), (logits.argmax(1) != labels).tolist()


@checked
def open_filter(text: str) -> Filter:
    """Open a filter by the text that ``--filter`` takes.

    Args:
        text: ``"guard"``, ``"copy"`` or ``"seed-copy"``, the last two also with a threshold as in
            ``"copy=0.2"``; or ``"label=CLASSIFIER"``, where the classifier is ``bundled``, a
            TorchScript file (.pt), an ONNX file (.onnx), or ``ARCHITECTURE:WEIGHTS.safetensors``
            with an architecture of torchvision or timm, which sees images of 224 pixels,
            normalised as for ImageNet. TorchScript files are programs: use only those you trust.

    Raises:
        ValueError: there is no such filter.
        FileNotFoundError: the classifier's file is not there.
    """
    name, given, value = text.partition("=")
    if text == "guard":
        return GuardEvents()
    if name in ("copy", "seed-copy"):
        kind = OtherImageCopy if name == "copy" else SeedCopy
        if not given:
            return kind()
        with suppress(ValueError):
            return kind(float(value))
        raise ValueError(f"filter {name}: the threshold must be a number >= 0, got {value!r}.")
    if name == "label" and value:
        _open_classifier(value)  # refused now, not at the first batch
        architecture, colon, path = value.rpartition(":")
        identity = value
        if value != "bundled":
            with open_file(path) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            identity = architecture + colon + digest
        return LabelAgreement(partial(_classify, value), identity)
    raise ValueError(f"filter must be guard, copy, seed-copy or label=CLASSIFIER, got {text!r}.")


def _classify(text: str, images: Tensor) -> Tensor:
    return _open_classifier(text)(images)


@cache
def _open_classifier(text: str) -> Callable[[Tensor], Tensor]:
    """A classifier in a file; each process opens it, since a program has no pickle."""
    if text == "bundled":
        return fashion_mnist_judge()
    architecture, _, name = text.rpartition(":")
    path = regular_file(name)
    if path.suffix == ".safetensors" and architecture:
        model = build_classifier(architecture, path)
        return lambda images: model(F.normalize(
            # what torchvision's own classifiers were trained on
            F.resize(images.expand(-1, 3, -1, -1), [224, 224], antialias=True),
            IMAGENET_MEAN, IMAGENET_STD))
    try:
        if path.suffix == ".onnx":
            return _open_onnx(path)
        if path.suffix in (".pt", ".ts", ".torchscript"):
            program: Callable[[Tensor], Tensor] = torch.jit.load(path, map_location="cpu").eval()
            return program
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: could not be read as a classifier: {error}") from error
    raise ValueError(
        f"{path}: expected .pt (TorchScript), .onnx, or ARCHITECTURE:WEIGHTS.safetensors.")


def _open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """The program in an ONNX file; its errors become RuntimeErrors, as those of torch are."""
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError as error:
        raise ImportError("ONNX classifiers need: pip install onnxruntime.") from error

    def run(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf,
                state.NotImplemented, state.RuntimeException) as error:
            raise RuntimeError(str(error)) from error

    session = run(onnxruntime.InferenceSession, str(path), None, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(run(session.run, None, {name: images.numpy()})[0])
