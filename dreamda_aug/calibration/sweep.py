"""`calibrate`: how far a model may take images, measured on the user's own images."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from dreamda_aug import progress as bars
from dreamda_aug.arguments import checked
from dreamda_aug.calibration.judge import GivenJudge, Judge, fold_judge
from dreamda_aug.calibration.search import Dials, Measurement, Target, grid, search
from dreamda_aug.errors import StorageError
from dreamda_aug.generation.dials import Calibration, CalibrationPoint, calibration_path
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.method.settings import Settings
from dreamda_aug.models import Condition, DiffusionModel

STRENGTHS = (0.3, 0.5, 0.7, 0.85, 1.0)
NOISE_SCALES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
REPLAYS = (1.0, 0.95, 0.9, 0.8, 0.6, 0.0)


@checked
def calibrate(
    images: Tensor,
    labels: Tensor | None = None,
    *,
    synthesizer: Synthesizer | HasSynthesizer,
    conditions: Sequence[Condition] | None = None,
    classifier: Callable[[Tensor], Tensor] | None = None,
    min_agreement: float = 0.9,
    max_distance: float | None = None,
    strengths: Sequence[float] = STRENGTHS,
    noise_scales: Sequence[float] = NOISE_SCALES,
    replays: Sequence[float] = REPLAYS,
    block_indices: Sequence[int] | None = None,
    replicas: int = 4,
    max_rows: int | None = None,
    progress: Callable[[CalibrationPoint], None] | None = None,
) -> Calibration:
    """Choose the dials that move images furthest and keep their classes.

    Args:
        images: a sample of the seed images, (N, C, H, W) in [0, 1], of the model's size; a few
            per class, 50 or more in all.
        labels: their classes, (N,) int64; needed unless ``max_distance`` is the target.
        synthesizer: what is to be calibrated; settings that are numbers stay as they are.
        conditions: what generation is conditioned on for each image; None: unconditional.
        classifier: images (B, C, H, W) in [0, 1] to logits (B, K) or classes (B,); None: linear
            probes on the model's own features, each fitted without the images that it judges.
        min_agreement: the target: at least this share of replicas keeps the seed's label, in
            [0, 1], counted over seeds that the classifier gets right.
        max_distance: another target: root mean square pixel distance from the seed, in [0, 1].
        strengths: what to try, in (0, 1]; only where the setting is None.
        noise_scales: what to try, >= 0; only where the setting is None.
        replays: what to try, in [0, 1]; only where the setting is None.
        block_indices: for transformers, blocks behind which noise may enter: all other dials are
            measured behind each, with the same judge, and the hook is kept that moves images
            furthest. None: the hook of the synthesizer.
        replicas: replicas per image, at least 2.
        max_rows: U-Net rows to spend, about: a coarse look at some choices, and a full one at what
            it found, see `search`; hooks share them. None: a full look at every choice.
        progress: called with each point as it is measured.

    Returns:
        The calibration; it is also saved beside the synthesizer's cache, where it is found again.
        With ``block_indices`` that of each hook is saved, and the best is returned. The synthesizer
        keeps the hook that it has: load the model with ``block_index=calibration.block_index``.

    Raises:
        ValueError: an argument breaks its rule.

    Source: ours.
    """
    if labels is None and max_distance is None:
        raise ValueError("labels must be given for the agreement target, or max_distance instead.")
    if not 0 <= min_agreement <= 1:
        raise ValueError(f"min_agreement must lie in [0, 1], got {min_agreement}.")
    if replicas < 2:
        raise ValueError(f"replicas must be at least 2 to measure diversity, got {replicas}.")
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows must be at least 1, got {max_rows}; None spends what it takes.")
    core = as_synthesizer(synthesizer).core
    requested = core.requested_settings
    choices = choices_for(requested, strengths, replays, noise_scales)
    target = Target(min_agreement, max_distance)
    with _hooked_at(core.model, block_indices) as models:
        judge: Judge | None = None if classifier is None else GivenJudge(classifier)
        if labels is not None and judge is None:
            judge = fold_judge(core.model, images.cpu(), labels.cpu())
            if judge is None and max_distance is None:
                raise ValueError(
                    "labels must be of two classes or more for the agreement target, got one "
                    "class; give max_distance instead, or a classifier."
                )
        share = None if max_rows is None else max(1, max_rows // len(models))
        found = []
        for model in models:
            measurement = Measurement(core.with_settings(requested, model), images, labels,
                                      conditions, judge, replicas)
            found.append(choose(measurement, requested, choices, target, share, progress))
        chosen = [each.chosen for each in found]
        best = chosen.index(target.furthest([point for point in chosen if point is not None]))
        found[best] = replace(
            found[best], points=[point for each in found for point in each.points])
        if core.cache is not None:
            for model, each in zip(models, found, strict=True):
                save(each, calibration_path(core.cache.root, requested, model))
    return found[best]


@contextmanager
def _hooked_at(
    model: DiffusionModel, block_indices: Sequence[int] | None
) -> Iterator[list[DiffusionModel]]:
    """The same model perturbed behind each of these blocks; None: as it is.

    Raises:
        ValueError: there is no such block, or the model is no transformer.
    """
    from dreamda_aug.models.transformer import TransformerModel

    if block_indices is None:
        yield [model]
        return
    if not isinstance(model, TransformerModel):
        raise ValueError(
            f"block_indices are for transformers, and {model.name} has a U-Net, got "
            f"{list(block_indices)}; leave them out."
        )
    if len(block_indices) == 0:
        raise ValueError("block_indices must name one block or more, got none.")
    others: list[DiffusionModel] = []
    try:
        for index in dict.fromkeys(block_indices):
            others.append(model.with_block(index))
        yield others
    finally:
        for other in others:
            other.hook.remove()


def choices_for(
    settings: Settings, strengths: Sequence[float], replays: Sequence[float],
    noise_scales: Sequence[float],
) -> list[Dials]:
    """Every choice of the dials that settings leave open, the mildest first."""
    return grid(
        strengths if settings.strength is None else (settings.strength,),
        replays if settings.replay is None else (settings.replay,),
        noise_scales if settings.noise_scale is None else (settings.noise_scale,),
    )


def choose(
    measurement: Measurement, settings: Settings, choices: Sequence[Dials], target: Target,
    max_rows: int | None, progress: Callable[[CalibrationPoint], None] | None = None,
    sample: str = "",
) -> Calibration:
    """Measure choices and take the one that moves images furthest and keeps the target.

    Args:
        measurement: on which images.
        settings: all that is not chosen here.
        choices: among them, the mildest first.
        target: what must be kept.
        max_rows: as in `calibrate`.
        progress: as in `calibrate`.
        sample: as in `Calibration`.
    """
    total = max_rows or sum(measurement.rows(each.of(settings)) for each in choices)
    with bars.bar("calibrating", total, "rows") as shown:
        def said(point: CalibrationPoint, rows: int) -> None:
            shown.update(min(rows, total - shown.n))
            if progress:
                progress(point)

        if max_rows is None:
            points = []
            for each in choices:
                points.append(measurement.point(each.of(settings)))
                said(points[-1], measurement.rows(each.of(settings)))
            chosen = target.furthest(points)
        else:
            chosen, points = search(measurement, settings, choices, target, max_rows, said)
    if not target.kept(chosen):
        warnings.warn(f"no setting kept {target}; took the closest, {chosen}.", stacklevel=4)
    judge = measurement.judge if target.max_distance is None else None
    return Calibration(chosen.noise_scale, chosen.replay, str(target), target.kept(chosen),
                       points, chosen.strength, judge.name if judge else "", sample,
                       chosen.block_index)


def save(result: Calibration, path: Path) -> None:
    """Keep a calibration; where that fails, a warning says so."""
    try:
        result.save(path)
    except (OSError, StorageError) as error:
        warnings.warn(f"the calibration could not be saved, and holds for this object only: "
                      f"{error}", stacklevel=4)
