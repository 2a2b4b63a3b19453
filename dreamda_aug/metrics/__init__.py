"""How close synthetic images are to real ones: all measures under one roof.

Distances between distributions are in :mod:`dreamda_aug.metrics.distributions`, precision and
recall in :mod:`dreamda_aug.metrics.manifolds`, what concerns single samples in
:mod:`dreamda_aug.metrics.neighbours`, how images become features in
:mod:`dreamda_aug.metrics.features`; the names a user needs are all importable from here.
"""

from dreamda_aug.metrics.comparison import MetricsReport, compare_folders, label_agreement
from dreamda_aug.metrics.distances import nearest
from dreamda_aug.metrics.distributions import (
    KernelDistance,
    SmallSampleWarning,
    frechet_distance,
    kernel_distance,
    mean_discrepancy,
)
from dreamda_aug.metrics.features import (
    FeatureFunction,
    classifier_features,
    extract_features,
    inception_features,
    pixel_features,
)
from dreamda_aug.metrics.manifolds import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
)
from dreamda_aug.metrics.neighbours import NearestOther, nearest_other, replica_diversity

__all__ = [
    "DensityCoverage",
    "FeatureFunction",
    "KernelDistance",
    "MetricsReport",
    "NearestOther",
    "PrecisionRecall",
    "SmallSampleWarning",
    "classifier_features",
    "compare_folders",
    "density_coverage",
    "extract_features",
    "frechet_distance",
    "inception_features",
    "kernel_distance",
    "label_agreement",
    "mean_discrepancy",
    "nearest",
    "nearest_other",
    "pixel_features",
    "precision_recall",
    "replica_diversity",
]
