"""Labels from a diffusion model: a linear probe on its features, and the model as a classifier.

A classifier that was trained on a few labeled images is a poor judge of images that differ much
from these. A diffusion model has seen many more images, and its features separate classes. So a
logistic regression on them can label what the same model made.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamda_aug.arguments import real, whole
from dreamda_aug.generation.sampler import in_turn
from dreamda_aug.inputs.samples import check_integers
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.method.seeding import SOURCE, seeded_normal
from dreamda_aug.metrics.features import FeatureFunction, extract_features, pixel_features
from dreamda_aug.models import DiffusionModel
from dreamda_aug.models.conditioning import Condition

# C of the regressions; one serves all features, which are standardised.
INVERSE_PENALTY = 30.0
# The number of noise levels that a strength chooses from; the strengths at which features are
# taken, and the cells, _GRID x _GRID, that they are averaged over.
_STEPS = 100
_STRENGTHS, _GRID = (0.05, 0.2), 2
# Features that vary less than this share of the others are not scaled up to them.
_LEAST = 0.1
# The diffusion classifier tries so many noise levels, the first of them on all classes, and the
# others on the classes that are best so far.
_LEVELS, _FIRST_LEVELS, _CLASSES_KEPT = 32, 8, 3


def model_features(model: DiffusionModel) -> FeatureFunction:
    """Image features from a diffusion model: the output of the first block after the bottleneck.

    The image is noised 5 % and 20 % of the way to pure noise [ours], always with the same noise,
    so an image has the same features in any batch. Each of both costs part of one U-Net pass.

    Args:
        model: the diffusion model; its unconditional branch is used.

    Returns:
        A feature function: images (B, C, H, W) in [0, 1] to (B, D) float32, where D is 8 x the
        block's channels: two noise levels, and an average over each quarter of the image.

    Raises:
        ModelError: when called, by a class-conditional model without a null class.

    Source: Baranchuk et al. 2022, arXiv:2112.03126, for labels per pixel.
    """
    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        found = []
        with in_turn(model):
            condition = model.embed([None] * len(images))
            for _, x_t, schedule in noised(model, images, _STRENGTHS):
                maps = model.features(
                    schedule.model_input(x_t, 0), schedule.timesteps[0], condition)
                found.append(F.adaptive_avg_pool2d(maps, _GRID).flatten(1))
        return torch.cat(found, 1)

    return features


def features_for_labels(model: DiffusionModel) -> tuple[FeatureFunction, str]:
    """The features that classes are told apart by, and their name.

    Those of the model itself; or pixels, where it is class-conditional without a null class:
    such a model sees nothing in an image of an unknown class.
    """
    if model.condition_kind == "class" and not model.guidable:
        return pixel_features(), "pixels"
    return model_features(model), "the model's own features"


class LinearProbe(nn.Module):
    """A classifier: logistic regression on the features of a few labeled images.

    As a labeler: ``SingleHeadLabeler(probe, soft=True)``. Features are standardised by the labeled
    images and scaled to length 1, so that one penalty suits all feature functions.

    Args:
        features: images (B, C, H, W) in [0, 1] to (B, D): `model_features` of the model that
            makes the synthetic images, or any other.
        images: labeled images, (N, C, H, W) in [0, 1].
        targets: their class indices, (N,) integers.
        num_classes: number of classes, or None for one more than the largest target.
        inverse_penalty: C of scikit-learn's ``LogisticRegression``, > 0; larger fits closer.

    Raises:
        ValueError: an argument is out of range, or targets do not fit the images.

    Source: ours; the probe is the usual one of representation learning.
    """

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(
        self, features: FeatureFunction, images: Tensor, targets: Tensor, *,
        num_classes: int | None = None, inverse_penalty: float = INVERSE_PENALTY,
    ) -> None:
        super().__init__()
        inverse_penalty = real("inverse_penalty", inverse_penalty, "be above 0", 1e-12)
        classes = (int(torch.as_tensor(targets).max()) + 1 if num_classes is None
                   else whole("num_classes", num_classes, 1))
        targets = check_integers("targets", targets, len(images), 0, classes - 1).cpu()
        self.features = features
        found = extract_features(images, features).double()
        mean, deviation = found.mean(0), deviations(found)
        weight, bias = logistic_regression(
            F.normalize((found - mean) / deviation, dim=1), targets, classes, inverse_penalty)
        for name, value in (("mean", mean), ("deviation", deviation), ("weight", weight),
                            ("bias", bias)):
            self.register_buffer(name, value.float())  # Apple's GPUs have no float64

    def matched_to(self, images: Tensor) -> "LinearProbe":
        """The same probe for images of another style, such as synthetic ones.

        Their features are standardised by themselves, so that a common difference from the labeled
        images does not count.

        Args:
            images: (N, C, H, W) in [0, 1], N >= 2; all classes must occur in them about as often
                as among the labeled images.

        Returns:
            Another probe; this one stays as it is.

        Raises:
            ValueError: fewer than two images.

        Source: Li et al. 2016 (AdaBN), arXiv:1603.04779, on a probe's features.
        """
        if len(images) < 2:
            raise ValueError(f"images must be two or more, to have a deviation, got {len(images)}.")
        found = extract_features(images, self.features).to(self.mean)
        matched = copy.copy(self)
        matched._buffers = {
            **self._buffers, "mean": found.mean(0), "deviation": deviations(found)}
        return matched

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) float32 of images (B, C, H, W) in [0, 1]."""
        found = (self.features(images).to(self.mean) - self.mean) / self.deviation
        return (F.normalize(found, dim=1) @ self.weight.T + self.bias).to(images.device)


class DiffusionClassifier(nn.Module):
    """Labels images by a conditional diffusion model's denoising error, without any training.

    All classes are compared with the same noise at the same noise levels: 8 levels under all
    classes, and 24 more under the best three, which saves most of the denoiser's rows.

    As a labeler for AMST: ``SingleHeadLabeler(DiffusionClassifier(model, conditions))``.

    Args:
        model: conditioned on classes or on text.
        conditions: the condition of each class, in label order: class numbers, or prompts.
        batch_size: denoiser rows per call.

    Attributes:
        temperature: divides errors into logits; see `fit_temperature`.

    Raises:
        ValueError: fewer than two conditions.

    Source: Li et al. 2023, arXiv:2303.16203, algorithms 1 and 2; the temperature is ours.
    """

    def __init__(
        self, model: DiffusionModel, conditions: Sequence[Condition], *, batch_size: int = 64
    ) -> None:
        super().__init__()
        if len(conditions) < 2:
            raise ValueError(f"conditions must be two or more, got {len(conditions)}.")
        self.model, self.conditions = model, list(conditions)
        self.batch_size = whole("batch_size", batch_size, 1)
        self.temperature = 1.0

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) float32 of images (B, C, H, W) in [0, 1], of the model's size."""
        with in_turn(self.model):
            errors, alive = self._errors(self.model.encode(images))
        # classes that were given up stay behind all others
        worst = errors.masked_fill(~alive, -math.inf).amax(1, keepdim=True)
        errors = torch.where(alive, errors, torch.maximum(errors, worst))
        return (-errors / self.temperature).to(images.device)

    def _errors(self, x_0: Tensor) -> tuple[Tensor, Tensor]:
        """Mean error under each class, and which classes were not given up; (B, classes)."""
        schedule = self.model.schedule(_LEVELS, 1.0)
        # neighbours in this order lie far apart, so that the first ones are spread over all levels
        order = sorted(range(_LEVELS), key=lambda level: level * (math.sqrt(5) - 1) / 2 % 1)
        seed = torch.zeros(1, dtype=torch.int64, device=x_0.device)
        errors = x_0.new_zeros(len(x_0), len(self.conditions))
        alive = torch.ones_like(errors, dtype=torch.bool)
        for call, level in enumerate(order):
            if call == _FIRST_LEVELS:
                kept = min(_CLASSES_KEPT, len(self.conditions))
                best = errors.topk(kept, dim=1, largest=False).indices
                alive = torch.zeros_like(alive).scatter_(1, best, True)
            noise = seeded_normal(seed, call, SOURCE, tuple(x_0.shape[1:]))
            x_t = schedule.add_noise(x_0, noise, level)
            for part in alive.nonzero().split(self.batch_size):
                image, of_class = part.unbind(1)
                condition = self.model.embed(
                    [self.conditions[number] for number in of_class.tolist()])
                output = self.model.predict(
                    schedule.model_input(x_t[image], level), schedule.timesteps[level], condition)
                _, eps = schedule.predictions(output, x_t[image], level, clip=False)
                errors[image, of_class] += (eps - noise).square().flatten(1).mean(1)
        return errors / torch.where(alive, _LEVELS, _FIRST_LEVELS), alive

    def fit_temperature(self, images: Tensor, targets: Tensor) -> float:
        """Set and return the temperature under which labeled images are most likely.

        Args:
            images: (N, C, H, W) in [0, 1].
            targets: their classes, (N,) int64.
        """
        self.temperature = 1.0
        logits = self(images).cpu()
        choices = torch.logspace(-5, 1, 61)
        losses = torch.stack([F.cross_entropy(logits / t, targets.cpu()) for t in choices])
        self.temperature = float(choices[losses.argmin()])
        return self.temperature


def deviations(features: Tensor, weight: Tensor | None = None, least: float = _LEAST) -> Tensor:
    """Standard deviation of each feature, (D,), of (N, D), at least a share of the mean of all.

    A pixel that is black in all labeled images would else outweigh all others where it is not.
    ``weight`` of each row is (N, 1), with sum 1, or None for all alike.
    """
    if weight is None:
        weight = features.new_full((len(features), 1), 1 / len(features))
    squares = (features - (weight * features).sum(0)).square()
    found = (weight * squares).sum(0).sqrt()
    return found.clamp(min=max(1e-6, least * found.square().mean().sqrt().item()))


def logistic_regression(
    features: Tensor, targets: Tensor, num_classes: int, inverse_penalty: float
) -> tuple[Tensor, Tensor]:
    """Weights (classes, D) and biases (classes,) that minimise C · Σ cross-entropy + |W|²/2.

    Features are (N, D) float64, targets (N,) int64, and the inverse penalty is C.
    """
    weight = features.new_zeros(num_classes, features.shape[1]).requires_grad_()
    bias = features.new_zeros(num_classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        fit = F.cross_entropy(features @ weight.T + bias, targets, reduction="sum")
        value = inverse_penalty * fit + weight.square().sum() / 2
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return weight.detach(), bias.detach()


def deal_out(targets: Tensor, folds: int) -> Tensor:
    """The fold that each image belongs to, (N,) int64: each class is dealt out in turn."""
    fold = torch.zeros_like(targets)
    for label in targets.unique():
        rows = (targets == label).nonzero().flatten()
        fold[rows] = torch.arange(len(rows)) % folds
    return fold


def noised(
    model: DiffusionModel, images: Tensor, strengths: Iterable[float]
) -> Iterator[tuple[Tensor, Tensor, NoiseSchedule]]:
    """Clean latents, and for each strength the noisy ones and the schedule that begins there.

    The noise is always the same, so that no result depends on batch mates.
    """
    x_0 = model.encode(images)
    seed = torch.zeros(1, dtype=torch.int64, device=x_0.device)
    noise = seeded_normal(seed, 0, SOURCE, tuple(x_0.shape[1:]))
    for strength in strengths:
        schedule = model.schedule(_STEPS, strength)
        yield x_0, schedule.add_noise(x_0, noise, 0), schedule
