"""Which augmentation suits your images: a small study on any labeled folder that chooses one.

    found = evaluate("photos", Synthesizer("stabilityai/sd-turbo"))
    print(found)
"""

from dreamda_aug.evaluation.protocol import evaluate
from dreamda_aug.evaluation.result import Evaluation

__all__ = ["Evaluation", "evaluate"]
