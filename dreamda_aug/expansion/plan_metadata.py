"""The facts that an expansion is begun with: everything that decides its files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dreamda_aug.expansion.class_conditions import embedded_digest
from dreamda_aug.expansion.filters import Filter
from dreamda_aug.expansion.manifest import library_versions, settings_to_json
from dreamda_aug.expansion.metadata import FORMAT, FORMAT_VERSION
from dreamda_aug.expansion.replicas import Plan
from dreamda_aug.generation.dials import Calibration
from dreamda_aug.generation.tensors import TensorSynthesizer
from dreamda_aug.inputs.sources import Source
from dreamda_aug.models import Condition


def plan_metadata(
    source: Source,
    plan: Plan,
    core: TensorSynthesizer,
    asked: Mapping[str, Any],
    *,
    image_format: str,
    batches_per_shard: int | None,
    filters: Sequence[Filter],
    calibration: Calibration | None,
    conditioned_on: Mapping[str, Condition],
    threads: int | None,
) -> dict[str, Any]:
    """What `read_metadata` will read, but for places and repeated seed images.

    Args:
        source: the seed images.
        plan: of their replicas.
        core: makes the images.
        asked: the arguments of `Expansion` that chose the replicas.
        image_format: as in `Expansion`.
        batches_per_shard: batches in a shard; None where there are none.
        filters: as in `Expansion`.
        calibration: where the settings' dials come from; None: they were given.
        conditioned_on: what `conditions` said.
        threads: of the CPU; None on other devices.
    """
    model, settings = core.model, core.settings
    counts = Counter(source.labels)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "samples": len(plan),
        "batch_size": plan.batch_size,
        "image_format": image_format,
        "batches_per_shard": batches_per_shard,
        "expansion": dict(asked),
        "filters": [each.describe() for each in filters],
        "settings": settings_to_json(settings),
        "calibration": None if calibration is None else calibration.facts(),
        "rng_seed": core.rng_seed,
        "conditions": dict(conditioned_on),
        "model": model.fingerprint,
        "schedule": core.schedule.digest(),
        "embedded": embedded_digest(model, settings, conditioned_on),
        "device": torch.device(model.device).type,
        "threads": threads,
        # the VAE's batches change the last bits; None, not False: as in older records
        "low_memory": model.low_memory or None,
        "image_size": list(model.image_size),
        "block_index": model.block_index,
        "embedded_guidance": model.embedded_guidance,
        "compile": core.static_shapes or None,
        "versions": library_versions(),
        "source": {
            "images": len(source.labels),
            "digest": source.digest(),
            "classes": {name: counts[label] for label, name in enumerate(source.classes)},
            "problems": source.problems,
        },
    }
