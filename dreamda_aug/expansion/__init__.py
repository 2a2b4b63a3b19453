"""Whole synthetic datasets on disk: made, resumed, filtered, described, read back."""

from dreamda_aug.expansion.estimate import estimate
from dreamda_aug.expansion.expansion import Expansion, Summary, expand
from dreamda_aug.expansion.filters import Filter, LabelAgreement, open_filter
from dreamda_aug.expansion.manifest import ManifestLine, read_manifest
from dreamda_aug.expansion.regeneration import regenerate

__all__ = [
    "Expansion", "Filter", "LabelAgreement", "ManifestLine", "Summary", "estimate", "expand",
    "open_filter", "read_manifest", "regenerate",
]
