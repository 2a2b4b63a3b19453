"""What the backbone is told about each seed image of an expansion."""

import hashlib
import json
from collections.abc import Callable, Collection

from dreamda_aug.backbones import Condition
from dreamda_aug.expansion.sources import Source
from dreamda_aug.generator import Generator
from dreamda_aug.prompts import Conditioner
from dreamda_aug.transforms import DreamDAugment


def conditions(
    source: Source, augment: DreamDAugment, generator: Generator, chosen: Collection[int]
) -> tuple[dict, Callable[[int], Condition]]:
    """What the backbone is told: as facts of the plan, and for each seed image by its number.

    Classes are called as the source calls them.
    """
    backbone, captions = generator.backbone, augment.conditioner.captions
    if captions is not None:
        names = captions.images(getattr(source, "file_names", source.paths), len(source.labels))
        texts = {index: augment.conditioner.condition(None, backbone, names[index])
                 for index in chosen}
        digest = hashlib.sha256(json.dumps(sorted(texts.items())).encode()).hexdigest()
        return {"captions": digest}, texts.__getitem__
    names = augment.conditioner.class_names
    if names is not None and len(names) != len(source.classes):
        raise ValueError(
            f"class_names must name the source's {len(source.classes)} classes, got {len(names)}."
        )
    if names is None and (
        backbone.condition_kind == "text"
        or set(source.classes) <= set(getattr(backbone, "class_names", None) or ())
    ):
        names = source.classes
    conditioner = Conditioner(names, augment.conditioner.prompt)
    told = [conditioner.condition(label, backbone) for label in range(len(source.classes))]
    labels = source.labels
    return dict(zip(source.classes, told, strict=True)), lambda index: told[labels[index]]
