"""`calibrate`: how strong a perturbation a backbone bears, measured on the user's own images."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dreamda_aug.backbones import Condition
from dreamda_aug.errors import StorageError
from dreamda_aug.generation.calibration import Calibration, CalibrationPoint, calibration_key
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.generation.tensors import TensorSynthesizer
from dreamda_aug.metrics.neighbours import NearestClassMean
from dreamda_aug.metrics.variation import measure_variation


def calibrate(
    images: Tensor,
    labels: Tensor | None = None,
    *,
    synthesizer: Synthesizer | HasSynthesizer,
    conditions: Sequence[Condition] | None = None,
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
        synthesizer: what is to be calibrated; settings that are numbers stay as they are.
        conditions: what generation is conditioned on for each image; None: unconditional.
        classifier: images (B, C, H, W) in [0, 1] to logits (B, K) or classes (B,); None: nearest
            class mean of the given images' pixels.
        min_agreement: the target: at least this share of replicas keeps the seed's label, in
            [0, 1], counted over seeds that the classifier gets right.
        max_distance: another target: root mean square pixel distance from the seed, in [0, 1].
        noise_scales: what to try, >= 0.
        adherences: what to try, in [0, 1]; only where the setting is None.
        replicas: replicas per image, at least 2.
        progress: called with each point as it is measured.

    Returns:
        The calibration; it is also saved beside the synthesizer's cache, where it is found again.

    Raises:
        ValueError: an argument breaks its rule.

    Source: ours.
    """
    core = as_synthesizer(synthesizer).core
    requested = core.requested_settings
    if labels is None and max_distance is None:
        raise ValueError("labels must be given for the agreement target, or max_distance instead.")
    if not 0 <= min_agreement <= 1:
        raise ValueError(f"min_agreement must lie in [0, 1], got {min_agreement}.")
    if replicas < 2:
        raise ValueError(f"replicas must be at least 2 to measure diversity, got {replicas}.")
    if requested.noise_scale is not None:
        noise_scales = (requested.noise_scale,)
    if requested.adherence is not None:
        adherences = (requested.adherence,)
    judge = _judge(images, labels, classifier)
    points = []
    for adherence in adherences:
        for scale in noise_scales:
            dials = replace(requested, adherence=adherence, noise_scale=float(scale))
            points.append(_measure(core.with_settings(dials), images, labels, conditions,
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
    if core.cache is not None:
        name = calibration_key(requested, core.backbone) + ".json"
        try:
            result.save(core.cache.root / "calibration" / name)
        except (OSError, StorageError) as error:
            warnings.warn(f"the calibration could not be saved, and holds for this object only: "
                          f"{error}", stacklevel=2)
    return result


def _judge(
    images: Tensor, labels: Tensor | None, classifier: Callable[[Tensor], Tensor] | None
) -> Callable[[Tensor], Tensor]:
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


def _measure(
    core: TensorSynthesizer, images: Tensor, labels: Tensor | None,
    conditions: Sequence[Condition] | None, judge: Callable[[Tensor], Tensor], replicas: int,
) -> CalibrationPoint:
    trajectories = core.invert(images, conditions=conditions)
    made = core.generate(
        [t for t in trajectories for _ in range(replicas)],
        [c for c in conditions for _ in range(replicas)] if conditions else None,
    ).cpu()
    variation = measure_variation(images.cpu(), made, replicas, judge,
                                  None if labels is None else labels.cpu())
    dials = core.settings
    assert dials.noise_scale is not None and dials.adherence is not None
    return CalibrationPoint(dials.noise_scale, dials.adherence, variation.agreement,
                            variation.distance, variation.diversity)
