"""What a run costs: the denoiser rows of inversions and samples, counted before they are run."""

from typing import NamedTuple

from dreamda_aug.generation.sampler import Sampler
from dreamda_aug.generation.sampling import can_share_first_step
from dreamda_aug.method.inversion import DDIMInversion
from dreamda_aug.method.solvers import call_levels


class Rows(NamedTuple):
    """Batch rows that pass a denoiser.

    Attributes:
        encoder: through what lies before the bottleneck hook.
        decoder: through what lies behind it.
    """

    encoder: int
    decoder: int

    @property
    def whole(self) -> int:
        """As passes of the whole denoiser, rounded up; a second decoder pass counts as half."""
        return -(-sum(self) // 2)


def denoiser_rows(sampler: Sampler, *, inversions: int, samples: int) -> Rows:
    """The rows that a sampler runs for some samples, without the padding of compiled models.

    Args:
        sampler: its settings, model and schedule decide.
        inversions: how many are computed; each batch that a trajectory is used in counts.
        samples: how many are generated.
    """
    settings, schedule = sampler.settings, sampler.schedule
    levels = call_levels(settings.solver, schedule)
    steps, inverting = len(schedule), 0
    if settings.replay > 0:
        inverting += steps if isinstance(settings.inversion, DDIMInversion) else 0
        inverting += len(levels) if settings.inversion.records_residuals else 0
    encoder = decoder = inverting * inversions
    asymmetric = settings.update_rule == "asymmetric" and settings.noise_scale > 0
    shared = not sampler.static_shapes and can_share_first_step(settings)
    for call, level in enumerate(levels):
        branches = 2 if sampler.model.guidable and settings.guides_at(level, steps) else 1
        inputs = branches * (min(inversions, samples) if shared and call == 0 else samples)
        encoder += inputs
        decoder += branches * samples + (inputs if asymmetric else 0)
    return Rows(encoder, decoder)
