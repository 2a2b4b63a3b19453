"""Does it help on your images? The same small study for any labeled folder.

    found = evaluate("photos", Synthesizer("stabilityai/sd-turbo"), shots=5)
    print(found)
"""

from dreamda_aug.evaluation.protocol import evaluate
from dreamda_aug.evaluation.verdict import Evaluation

__all__ = ["Evaluation", "evaluate"]
