"""What runs the units of an expansion elsewhere than in the calling process."""

from dreamda_aug.expansion.engines.job import Engine, Job

__all__ = ["Engine", "Job"]
