"""How close synthetic images are to real ones: distances, fidelity, and reports of two folders."""

from dreamda_aug.metrics.comparison import MetricsReport, compare_folders
from dreamda_aug.metrics.distances import frechet_distance, kernel_distance, precision_recall
from dreamda_aug.metrics.features import classifier_features, extract_features, inception_features

__all__ = [
    "MetricsReport", "classifier_features", "compare_folders", "extract_features",
    "frechet_distance", "inception_features", "kernel_distance", "precision_recall",
]
