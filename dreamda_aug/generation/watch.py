"""What a synthesizer notices about its own work, and says once."""

import warnings
from collections import Counter
from collections.abc import Sequence

from dreamda_aug.errors import GenerationError

# How many images, or calls, it takes before a share of them says something.
_ENOUGH = 8


class Watch:
    """Counts broken images, and rows that only fill batches up.

    Attributes:
        made: how many images were made so far.
        events: how often guards had to act so far, by what they did; see `guard`.
    """

    def __init__(self) -> None:
        self.made = self._calls = self._asked = self._run = 0
        self.events: Counter[str] = Counter()
        self._has_warned = False

    def made_images(self, events: Sequence[str], name: str) -> None:
        """Count images: a few broken ones are worth a warning, many an error.

        Args:
            events: what the guards did to each; ``""``: nothing.
            name: of the model.

        Raises:
            GenerationError: more than half of the images came out broken.
        """
        before = self.events["replaced"]
        self.made += len(events)
        self.events.update(event for event in events if event)
        broken = self.events["replaced"]
        if broken == before or self.made < _ENOUGH:
            return
        said = (f"{broken} of {self.made} images of {name} came out broken or black and were "
                "replaced by their seed image; check its weights and dtype (use torch.float32 or "
                "torch.bfloat16), and noise_scale.")
        if broken > self.made / 2:
            raise GenerationError(said)
        if broken > self.made / 20 and not self._has_warned:
            self._has_warned = True
            warnings.warn(said, stacklevel=3)

    def filled_up(self, count: int, batch_size: int) -> None:
        """Warn once where most rows of batches of one shape are thrown away.

        Args:
            count: images that a call asked for.
            batch_size: rows of every batch that is run for them.
        """
        self._calls, self._asked = self._calls + 1, self._asked + count
        self._run += -(-count // batch_size) * batch_size
        if self._calls == _ENOUGH and self._run > 2 * self._asked:
            mean = -(-self._asked // self._calls)
            warnings.warn(
                f"a compiled model runs whole batches, here of batch_size={batch_size}, but an "
                f"average call asks for {mean} image(s), and the rest is thrown away; set "
                f"batch_size={mean}.", stacklevel=3)
