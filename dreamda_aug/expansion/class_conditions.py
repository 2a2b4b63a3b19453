"""What the model is conditioned on for each seed image of an expansion."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping

from dreamda_aug.inputs.prompts import Conditioner
from dreamda_aug.inputs.sources import HasFileNames, Source
from dreamda_aug.method.settings import Settings
from dreamda_aug.models import Condition, DiffusionModel


def conditions(
    source: Source, conditioner: Conditioner, model: DiffusionModel, chosen: Collection[int]
) -> tuple[dict[str, Condition], Callable[[int], Condition]]:
    """Conditions as facts of the plan, and as a function of a seed image's number.

    The facts name each class as the source does.
    """
    captions = conditioner.captions
    if captions is not None:
        files = source.file_names if isinstance(source, HasFileNames) else source.paths
        images = captions.images(files, len(source.labels))
        texts = {index: conditioner.condition(None, model, images[index])
                 for index in chosen}
        digest = hashlib.sha256(json.dumps(sorted(texts.items())).encode()).hexdigest()
        return {"captions": digest}, texts.__getitem__
    names = source.classes if conditioner.class_names is None else conditioner.class_names
    if len(names) != len(source.classes):
        raise ValueError(
            f"class_names must name the source's {len(source.classes)} classes, got {len(names)}."
        )
    conditioner = Conditioner(names, conditioner.prompt)
    of_class = [conditioner.condition(label, model) for label in range(len(source.classes))]
    labels = source.labels
    return dict(zip(source.classes, of_class, strict=True)), lambda index: of_class[labels[index]]


def embedded_digest(
    model: DiffusionModel, settings: Settings, conditions_of: Mapping[str, Condition]
) -> str | None:
    """Digest of what the conditions are for the denoiser, which changes with the text encoder.

    None where conditions are no texts, or are one caption for each image (an image's own record
    holds its caption).
    """
    if model.condition_kind != "text" or set(conditions_of) == {"captions"}:
        return None
    digests = [model.condition_digest(text)
               for text in [settings.source_prompt, *conditions_of.values()]]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
