"""What dreamda_aug is worth, measured: accuracy, speed, scale, and AMST on digits.

Each sub-package is a command, called from the project's root: ``python -m benchmarks.accuracy``.
"""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
