"""Pages for people: one on a dataset, one on the dials; pictures, and upload to a hub."""

from dreamda_aug.report.contents import write_report

__all__ = ["write_report"]
