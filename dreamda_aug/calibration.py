"""How strong a perturbation a backbone bears: measured on the user's own images."""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from dreamda_aug.backbones import Backbone
from dreamda_aug.cache import LatentCache
from dreamda_aug.neighbours import NearestClassMean
from dreamda_aug.settings import Settings

logger = logging.getLogger(__name__)

# What "auto" means before anything was measured: mild for the small backbones we have seen.
UNCALIBRATED_NOISE_SCALE = 1.0
UNCALIBRATED_ADHERENCE = 0.9

_SHIPPED = Path(__file__).parent / "weights" / "calibration"


@dataclass(frozen=True)
class CalibrationPoint:
    """What one pair of dials does to the images.

    Attributes:
        noise_scale: as in `Settings`.
        adherence: as in `Settings`.
        agreement: share of replicas that the classifier gives their seed's label, among seeds that
            it labels right itself, in [0, 1].
        distance: root mean square pixel distance from the seed image, in [0, 1].
        diversity: the same between replicas of one seed image.
    """

    noise_scale: float
    adherence: float
    agreement: float
    distance: float
    diversity: float


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        noise_scale: the chosen scale.
        adherence: the chosen adherence.
        target: what it had to keep, in words.
        met: whether any point kept it; if not, the one that came closest was chosen.
        points: everything that was tried.
    """

    noise_scale: float
    adherence: float
    target: str
    met: bool
    points: list[CalibrationPoint] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        """Write it as JSON, as a whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Read what `save` wrote."""
        data = json.loads(Path(path).read_text())
        return cls(**{**data, "points": [CalibrationPoint(**point) for point in data["points"]]})


def calibration_key(settings: Settings, backbone: Backbone) -> str:
    """Names a calibration: the backbone and every setting that is not measured."""
    return hashlib.sha256(f"{backbone.fingerprint}{settings!r}".encode()).hexdigest()[:32]


def resolve_auto(settings: Settings, backbone: Backbone, cache: LatentCache | None) -> Settings:
    """Put measured numbers in place of "auto".

    They come from the cache's folder, or from the package for the bundled backbone. Where nothing
    was measured yet, mild defaults are taken and a warning says so.
    """
    if "auto" not in (settings.noise_scale, settings.adherence):
        return settings
    name = calibration_key(settings, backbone) + ".json"
    folders = [_SHIPPED] if cache is None else [cache.root / "calibration", _SHIPPED]
    for folder in folders:
        if (folder / name).exists():
            found = Calibration.load(folder / name)
            noise_scale, adherence = found.noise_scale, found.adherence
            break
    else:
        noise_scale, adherence = UNCALIBRATED_NOISE_SCALE, UNCALIBRATED_ADHERENCE
        warnings.warn(
            f"{backbone.name} was not calibrated for these settings yet: taking "
            f"noise_scale={noise_scale}, adherence={adherence}. Measure them on your images with "
            "dreamda_aug.calibrate or `dreamda calibrate`.", stacklevel=3,
        )
    return replace(
        settings,
        noise_scale=noise_scale if settings.noise_scale == "auto" else settings.noise_scale,
        adherence=adherence if settings.adherence == "auto" else settings.adherence,
    )


def calibrate(
    images: Tensor,
    labels: Tensor | None = None,
    *,
    generator,
    conditions: Sequence | None = None,
    classifier: Callable[[Tensor], Tensor] | None = None,
    min_agreement: float = 0.9,
    max_distance: float | None = None,
    noise_scales: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0),
    adherences: Sequence[float] = (1.0, 0.95, 0.9, 0.8),
    replicas: int = 4,
    progress: Callable[[CalibrationPoint], None] | None = None,
) -> Calibration:
    """Sweep noise scale and adherence; choose what moves images most and keeps their labels.

    Args:
        images: a sample of the seed images, (N, C, H, W) in [0, 1], of the backbone's size; a few
            per class, 50 or more in all.
        labels: their classes, (N,) int64; needed unless ``max_distance`` is the target.
        generator: the `Generator` whose "auto" is to be measured; settings that are numbers stay.
        conditions: what generation is told for each image; None: unconditional.
        classifier: images (B, C, H, W) in [0, 1] to logits (B, K) or classes (B,); None: nearest
            class mean of the given images' pixels.
        min_agreement: the target: at least this share of replicas keeps the seed's label, in
            [0, 1], counted over seeds that the classifier gets right.
        max_distance: another target: root mean square pixel distance from the seed, in [0, 1].
        noise_scales: what to try, >= 0.
        adherences: what to try, in [0, 1]; only where the setting is "auto".
        replicas: replicas per image, at least 2.
        progress: called with each point as it is measured.

    Returns:
        The calibration; it is also saved beside the generator's cache, where ``"auto"`` finds it.

    Raises:
        ValueError: an argument breaks its rule.

    Source: ours.
    """
    requested = generator.requested_settings
    if labels is None and max_distance is None:
        raise ValueError("labels must be given for the agreement target, or max_distance instead.")
    if not 0 <= min_agreement <= 1:
        raise ValueError(f"min_agreement must lie in [0, 1], got {min_agreement}.")
    if replicas < 2:
        raise ValueError(f"replicas must be at least 2 to measure diversity, got {replicas}.")
    if requested.noise_scale != "auto":
        noise_scales = (requested.noise_scale,)
    if requested.adherence != "auto":
        adherences = (requested.adherence,)
    judge = _judge(images, labels, classifier)
    points = []
    for adherence in adherences:
        for scale in noise_scales:
            dials = replace(requested, adherence=adherence, noise_scale=float(scale))
            points.append(_measure(generator.with_settings(dials), images, labels, conditions,
                                   judge, replicas))
            if progress:
                progress(points[-1])
    if max_distance is not None:
        target = f"distance <= {max_distance:g}"
        good = [p for p in points if p.distance <= max_distance]
    else:
        target = f"agreement >= {min_agreement:g}"
        good = [p for p in points if p.agreement >= min_agreement]
    if good:
        chosen = max(good, key=lambda p: (p.diversity, p.noise_scale))
    elif max_distance is not None:
        chosen = min(points, key=lambda p: p.distance)
    else:
        chosen = max(points, key=lambda p: p.agreement)
    if not good:
        warnings.warn(f"no setting kept {target}; took the closest, {chosen}.", stacklevel=2)
    result = Calibration(chosen.noise_scale, chosen.adherence, target, bool(good), points)
    if generator.cache is not None:
        name = calibration_key(requested, generator.backbone) + ".json"
        result.save(generator.cache.root / "calibration" / name)
    return result


def _judge(images, labels, classifier) -> Callable[[Tensor], Tensor]:
    """Images to classes; without labels every image is of class 0."""
    if labels is None:
        return lambda batch: torch.zeros(len(batch), dtype=torch.int64)
    if classifier is None:
        return NearestClassMean.fit(images.cpu(), labels.cpu()).predict

    @torch.no_grad()
    def judge(batch: Tensor) -> Tensor:
        output = classifier(batch)
        return (output.argmax(1) if output.ndim == 2 else output).cpu()

    return judge


def _measure(generator, images, labels, conditions, judge, replicas) -> CalibrationPoint:
    trajectories = generator.invert(images, conditions=conditions)
    made = generator.generate(
        [t for t in trajectories for _ in range(replicas)],
        [c for c in conditions for _ in range(replicas)] if conditions else None,
    ).cpu()
    seeds = images.cpu().repeat_interleave(replicas, 0)
    if labels is None:
        agreement = 1.0
    else:
        truth = labels.cpu()
        right = (judge(images.cpu()) == truth).repeat_interleave(replicas)
        same = judge(made) == truth.repeat_interleave(replicas)
        agreement = same[right].float().mean().item() if right.any() else 0.0
    grouped = made.unflatten(0, (len(images), replicas)).flatten(2)
    pairs = torch.cdist(grouped, grouped) / grouped.shape[2] ** 0.5
    return CalibrationPoint(
        noise_scale=generator.settings.noise_scale,
        adherence=generator.settings.adherence,
        agreement=agreement,
        distance=(made - seeds).flatten(1).square().mean(1).sqrt().mean().item(),
        diversity=(pairs.sum() / (len(images) * replicas * (replicas - 1))).item(),
    )
