"""Whole synthetic datasets on disk: made, resumed, filtered, described, read back."""

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.estimate import Estimate, estimate
from dreamda_aug.expansion.expansion import Expansion, Summary, expand
from dreamda_aug.expansion.filters import (
    Filter,
    GuardEvents,
    LabelAgreement,
    OtherImageCopy,
    SeedCopy,
    open_filter,
)
from dreamda_aug.expansion.manifest import ManifestLine, read_manifest
from dreamda_aug.expansion.regeneration import Regenerated, regenerate
from dreamda_aug.expansion.sharding import Progress

__all__ = [
    "Estimate", "Expansion", "ExpansionError", "Filter", "GuardEvents", "LabelAgreement",
    "ManifestLine", "OtherImageCopy", "Progress", "Regenerated", "SeedCopy", "Summary",
    "estimate", "expand", "open_filter", "read_manifest", "regenerate",
]
