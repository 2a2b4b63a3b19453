"""A small study on the user's own images: with synthetic images and without."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf

from dreamda_aug.amst import LabelPrior, SeedLabeler, SingleHeadLabeler
from dreamda_aug.arguments import checked, real, whole
from dreamda_aug.calibration.automatic import calibrated
from dreamda_aug.calibration.out_of_fold import predict_out_of_fold
from dreamda_aug.calibration.probe import LinearProbe, features_for_labels
from dreamda_aug.evaluation.training import PARTS, Trainer, class_accuracy, small_classifier
from dreamda_aug.evaluation.verdict import Evaluation
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.inputs.images import fit_to
from dreamda_aug.inputs.sources import Source, open_source
from dreamda_aug.metrics.features import FeatureFunction
from dreamda_aug.models import Condition
from dreamda_aug.progress import bar

REAL, CLASSICAL = "real only", "RandAugment"
SEED, PROBE, AMST = "DreamDA, seed labels", "DreamDA, linear probe", "DreamDA + AMST"
# Images that a study looks at in each draw, at most.
_LARGEST_TEST = 2000


@checked
def evaluate(
    source: Any,
    synthesizer: Synthesizer | HasSynthesizer,
    *,
    shots: int = 5,
    draws: int = 5,
    replicas: int = 10,
    steps: int = 640,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    flip: float = 0.5,
    image_size: int | None = None,
    classifier: Callable[[int, int], nn.Module] = small_classifier,
    device: str = "cpu",
    calibrate: bool = True,
    rng_seed: int = 0,
) -> Evaluation:
    """Train classifiers on a few of the images, with and without synthetic ones, and compare.

    In each draw, ``shots`` images of every class are labeled images; all others are the test
    set. Five arms start from the same weights and take the same steps: real images alone, with
    RandAugment, and with synthetic images under RandAugment whose labels are the seed images', a
    linear probe's on the diffusion model's features, and AMST's. Where the model is told the
    class, AMST's heads know how often it came out (`LabelPrior`). The verdict, against the better
    of the first two, is about seed labels where the model is told the class, which our own study
    found best there, and about AMST where it is not.

    Args:
        source: what `expand` takes: class folders, a list, or a dataset of ``(image, label)``.
        synthesizer: makes the synthetic images, with its own settings. Where it has no
            ``class_names``, classes are called what the source calls them.
        shots: labeled images per class, at least 2.
        draws: how often they are drawn, at least 2; each makes new synthetic images.
        replicas: synthetic images per labeled one.
        steps: optimizer steps of every arm, a multiple of 8.
        batch_size: images per step.
        learning_rate: AdamW's.
        flip: probability that training images are mirrored; 0 for digits and letters.
        image_size: pixels that the classifier sees; None: the model's, at most 64.
        classifier: channels and number of classes to a fresh classifier of images in [0, 1].
        device: where classifiers train, such as ``"cuda"``.
        calibrate: where dials are None, measure them anew in each draw, on its labeled images.
            False: take what `calibrate` found, or mild defaults.
        rng_seed: of draws and training.

    Returns:
        Accuracies of all arms and draws, with intervals and a verdict.

    Raises:
        ValueError: an argument breaks its rule, or a class has no image left to test on.

    Source: ours; the protocol of our accuracy study in small.
    """
    shots, draws = whole("shots", shots, 2), whole("draws", draws, 2)
    replicas, batch_size = whole("replicas", replicas, 1), whole("batch_size", batch_size, 2)
    flip = real("flip", flip, "lie in [0, 1]", 0.0, 1.0)
    rng_seed = whole("rng_seed", rng_seed, 0)
    if image_size is not None:
        whole("image_size", image_size, 1)
    if whole("steps", steps, PARTS) % PARTS:
        raise ValueError(f"steps must be a multiple of {PARTS}, got {steps}.")
    opened = open_source(source)
    synthesizer = as_synthesizer(synthesizer).with_class_names(opened.classes)
    size = image_size or min(64, *synthesizer.model.image_size)
    labels = torch.tensor([int(label) for label in opened.labels])
    classes = len(opened.classes)
    _check_counts(labels, opened.classes, shots)
    told = _told_the_class(synthesizer, classes)
    features, _ = features_for_labels(synthesizer.model)
    resize = v2.Lambda(partial(fit_to, model=synthesizer.model))
    settings: list[str] = []
    accuracies: dict[str, list[float]] = {}
    agreement: dict[str, list[float]] = {}
    with bar("evaluating", 5 * draws, "arms") as shown:
        for draw in range(draws):
            chosen, test = _draw(labels, shots, rng_seed + draw)
            images = [opened.open(row) for row in chosen.tolist()]
            pixels = _stack(images, size, synthesizer.model.channels)
            trainer = Trainer(
                partial(classifier, pixels.shape[1], classes), pixels, labels[chosen], flip, steps,
                batch_size, learning_rate, rng_seed + draw, device)
            test_images = _stack((opened.open(row) for row in test.tolist()), size,
                                 synthesizer.model.channels)

            def note(arm: str, model: nn.Module, same: float | None = None,
                     seen: tuple[Tensor, Tensor] = (test_images, labels[test])) -> None:
                accuracies.setdefault(arm, []).append(class_accuracy(model, *seen, device))
                if same is not None:
                    agreement.setdefault(arm, []).append(same)
                shown.update()

            note(REAL, trainer.supervised(trainer.weak))
            note(CLASSICAL, trainer.supervised(trainer.strong))
            maker = _calibrated(synthesizer, opened, chosen) if calibrate else synthesizer
            settings.append(maker.settings.summary())
            made = maker.synthesize(
                [image for image in images for _ in range(replicas)],
                labels[chosen].repeat_interleave(replicas).tolist(),
                list(range(replicas)) * len(images),
                names=[opened.paths[row] for row in chosen.tolist() for _ in range(replicas)])
            pool = _stack(made, size, synthesizer.model.channels)
            seeds = labels[chosen].repeat_interleave(replicas)
            note(SEED, *trainer.self_training(pool, seeds, SeedLabeler()))
            seen, resized = resize(pixels), resize(pool)
            probe = LinearProbe(features, seen, labels[chosen], num_classes=classes,
                                inverse_penalty=None).matched_to(resized)
            note(PROBE, *trainer.self_training(
                pool, seeds, SingleHeadLabeler(nn.Sequential(resize, probe), soft=True)))
            prior = None
            if told:
                prior = estimate_label_prior(features, seen, labels[chosen], resized, seeds,
                                             classes)
            note(AMST, *trainer.self_training(pool, seeds, prior))
    return Evaluation(
        accuracies, {arm: sum(values) / len(values) for arm, values in agreement.items()},
        [REAL, CLASSICAL], SEED if told else AMST,
        {"model": synthesizer.model.name, "settings": "; ".join(dict.fromkeys(settings)),
         "shots": str(shots), "replicas": str(replicas), "steps": str(steps),
         "image_size": str(size), "test_images": str(len(test))})


def _told_the_class(synthesizer: Synthesizer, classes: int) -> bool:
    """Whether the model knows which class it is asked for, of all of them."""
    conditioner, model = synthesizer.conditioner, synthesizer.model
    return conditioner.needs_label(model) and all(
        conditioner.condition(label, model) is not None for label in range(classes))


def _calibrated(synthesizer: Synthesizer, source: Source, chosen: Tensor) -> Synthesizer:
    """With dials that were measured on these images alone."""
    def condition(index: int) -> Condition:
        return synthesizer.conditioner.condition(
            source.labels[index], synthesizer.model, source.paths[index])

    return calibrated(synthesizer, source, chosen.tolist(), condition)[0]


def estimate_label_prior(
    features: FeatureFunction, images: Tensor, labels: Tensor, made: Tensor, asked: Tensor,
    classes: int,
) -> LabelPrior:
    """How often images made of labeled ones kept the class, by probes that saw no seed image.

    Args:
        features: images (B, C, H, W) in [0, 1] to (B, D).
        images: labeled images, (N, C, H, W) in [0, 1].
        labels: their classes, (N,) int64.
        made: as many of each labeled image, side by side, (M, C, H, W) in [0, 1].
        asked: the classes asked for, (M,) int64.
        classes: how many there are.
    """
    seed_index = torch.arange(len(made)) // (len(made) // len(images))
    predicted, confusion = predict_out_of_fold(features, images, labels, made, seed_index,
                                               num_classes=classes)
    return LabelPrior.estimate(asked, predicted, classes, confusion=confusion)


def _check_counts(labels: Tensor, classes: list[str], shots: int) -> None:
    counts = labels.bincount(minlength=len(classes)).tolist()
    for name, count in zip(classes, counts, strict=True):
        if count <= shots:
            raise ValueError(
                f"source must have more than {shots} images of each class, so that some are left "
                f"to test on; class {name!r} has {count}. Use fewer shots.")


def _draw(labels: Tensor, shots: int, rng_seed: int) -> tuple[Tensor, Tensor]:
    """Rows of the labeled images, class by class, and of the test images."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(rng_seed))
    chosen = torch.cat([order[labels[order] == label][:shots] for label in labels.unique()])
    left = torch.ones(len(labels), dtype=torch.bool)
    left[chosen] = False
    return chosen, order[left[order]][:_LARGEST_TEST]


def _stack(images: Any, size: int, channels: int) -> Tensor:
    """PIL images or tensors as one batch (N, C, size, size) in [0, 1]."""
    rows = []
    for image in images:
        if not isinstance(image, Tensor):
            image = tvf.pil_to_tensor(image.convert("L" if channels == 1 else "RGB"))
        image = tvf.resize(image, [size, size], antialias=True)
        rows.append(tvf.to_dtype(image, torch.float32, scale=True))
    return torch.stack(rows)
