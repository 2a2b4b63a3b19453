"""`calibrate`: how far a model may move images, measured on the user's own images."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from torch import Tensor

from dreamda_aug.arguments import checked, real, whole
from dreamda_aug.calibration.judge import fold_judge, given_judge
from dreamda_aug.calibration.search import Measurement, Target, choose, dial_choices
from dreamda_aug.generation.dials import (
    LABEL_FREE,
    Calibration,
    CalibrationPoint,
    calibration_path,
    keep_calibration,
)
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.models import DiffusionModel
from dreamda_aug.models.conditioning import Condition


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
    strengths: Sequence[float] = (0.3, 0.5, 0.7, 0.85, 1.0),
    noise_scales: Sequence[float] = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0),
    replays: Sequence[float] = (1.0, 0.95, 0.9, 0.8, 0.6, 0.0),
    block_indices: Sequence[int] = (),
    expansion_ratio: int = 4,
    max_rows: int | None = None,
    progress: Callable[[CalibrationPoint], None] | None = None,
) -> Calibration:
    """Choose the dials that move images furthest and keep their classes.

    Args:
        images: a sample of the seed images, (N, C, H, W) in [0, 1], of the model's size; a few
            per class, 50 or more in all.
        labels: their classes, (N,) int64; needed unless ``max_distance`` is the target.
        synthesizer: what to calibrate; settings that are numbers are not changed.
        conditions: what generation is conditioned on for each image, or None to calibrate for
            images without labels.
        classifier: images (B, C, H, W) in [0, 1] to logits (B, K) or classes (B,), or None for
            linear probes on the model's own features, each fitted without the images that it
            judges.
        min_agreement: the target: at least this share of replicas keeps the seed's label, in
            [0, 1], counted over seeds that the classifier gets right.
        max_distance: another target: root mean square pixel distance from the seed, in [0, 1].
        strengths: what to try, in (0, 1]; only where the setting is None.
        noise_scales: what to try, >= 0; only where the setting is None.
        replays: what to try, in [0, 1]; only where the setting is None.
        block_indices: for transformers, blocks behind which noise may enter: all other dials are
            measured behind each with the same judge, and the block that moves images furthest is
            kept; or none for the block of the synthesizer.
        expansion_ratio: replicas per image, at least 2.
        max_rows: approximate number of U-Net rows to spend, all blocks together: some choices are
            measured coarsely, and the best ones fully; or None to measure every choice fully.
        progress: called with each point as it is measured.

    Returns:
        The calibration. It is also stored beside the synthesizer's cache, and used from there.
        With ``block_indices`` one is stored per block, and the best is returned. The synthesizer
        keeps its block: load the model with ``block_index=calibration.block_index``.

    Raises:
        ValueError: an argument breaks its rule.

    Source: ours.
    """
    if labels is None and max_distance is None:
        raise ValueError("labels must be given for the agreement target, or max_distance instead.")
    target = Target(real("min_agreement", min_agreement, "lie in [0, 1]", 0, 1), max_distance)
    expansion_ratio = whole("expansion_ratio", expansion_ratio, 2)  # diversity needs two
    if max_rows is not None:
        max_rows = whole("max_rows", max_rows, 1)
    synthesizer = as_synthesizer(synthesizer)
    requested, model = synthesizer.requested_settings, synthesizer.model
    choices = dial_choices(requested, strengths, replays, noise_scales)
    with ExitStack() as hooks:
        models, judge = _hooked_at(model, block_indices, hooks), None
        if labels is not None:
            judge = (given_judge(classifier, labels.cpu()) if classifier else
                     fold_judge(model, images.cpu(), labels.cpu()))
            if judge is None and max_distance is None:
                raise ValueError("labels must be of two classes or more for the agreement target, "
                                 "got one class; give max_distance instead, or a classifier.")
        share = None if max_rows is None else max(1, max_rows // len(models))
        sampler = synthesizer.with_settings(choices[0]).sampler
        found = [choose(Measurement(replace(sampler, model=each), images, conditions, judge,
                                    expansion_ratio), choices, target, share, progress)
                 for each in models]
        chosen = [each.chosen for each in found]
        best = chosen.index(target.furthest(chosen))
        found[best] = replace(found[best], points=[p for each in found for p in each.points])
        if synthesizer.cache is not None:
            label_free = conditions is None and synthesizer.conditioner.needs_label(model)
            for one, each in zip(models, found, strict=True):
                keep_calibration(each, calibration_path(
                    synthesizer.cache.root, requested, one, LABEL_FREE if label_free else ""))
    return found[best]


def _hooked_at(
    model: DiffusionModel, block_indices: Sequence[int], hooks: ExitStack
) -> list[DiffusionModel]:
    """The same model perturbed behind each of these blocks, until ``hooks`` close; or as it is."""
    from dreamda_aug.models.transformer import TransformerModel

    if not block_indices:
        return [model]
    if not isinstance(model, TransformerModel):
        raise ValueError(f"block_indices are for transformers, and {model.name} has a U-Net, got "
                         f"{list(block_indices)}; leave them out.")
    others: list[DiffusionModel] = []
    for index in dict.fromkeys(block_indices):
        others.append(model.with_block(index))
        hooks.callback(others[-1].hook.remove)
    return others
