"""All dials of generation in one value, and the presets."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from dreamda_aug.arguments import check_fields, real, whole
from dreamda_aug.method.inversion import CycleDiffusion, DDIMInversion
from dreamda_aug.method.perturbation import BottleneckNoise, Perturbation
from dreamda_aug.method.solvers import SolverName

# The settings that may be None, which means: as calibrated.
DIALS = ("strength", "noise_scale", "replay")
# More steps than any model has noise levels are a slip of the hand.
_MAX_STEPS = 10_000
_RANGES = {
    "strength": ("lie in (0, 1]", math.ulp(0.0), 1.0), "eta": ("lie in [0, 1]", 0.0, 1.0),
    "replay": ("lie in [0, 1]", 0.0, 1.0), "noise_scale": ("be a number >= 0", 0.0, math.inf),
    "guidance_scale": ("be >= 0", 0.0, math.inf),
}


@dataclass(frozen=True)
class Settings:
    """How images are inverted and generated.

    Attributes:
        steps: reverse steps from pure noise to the image; ``strength`` of them are run.
        strength: share of the steps that is run, in (0, 1], or None to calibrate it; higher moves
            images further.
        eta: 0 is deterministic DDIM, 1 is DDPM.
        inversion: how the source path is made.
        replay: share of the recorded residual that is replayed, in [0, 1]:
            step = mean + replay·residual + sqrt(1 - replay²)·std·fresh noise. 1 is DreamDA.
            0 is img2img (SDEdit, arXiv:2108.01073): no inversion, and a fresh x_T [ours]. None to
            calibrate it.
        replay_interval: start and end of the part of the run in which residuals are replayed, as
            shares of its steps; outside, the replay is 0. (0, 1) is the whole run; (0, 0.5) keeps
            the seed image's coarse layout, and draws its details afresh [ours].
        noise_scale: how much noise is added to the bottleneck, >= 0, or None to calibrate it.
        perturbation: what is added to the bottleneck, such as `BottleneckNoise`.
        solver: how steps are taken: ``"ddim"``, ``"dpmsolver++"`` (2M; as good with a quarter of
            the steps) or ``"heun"`` (two denoiser calls a step); see `Solver`.
        timestep_spacing: ``"uniform"`` for evenly spaced timesteps below the noise level of
            ``strength``, which is the same for any number of steps; ``"scheduler"`` for the last
            share of the steps of the model's own scheduler, as in published code (with few steps
            it begins at less noise than ``strength`` states).
        update_rule: ``"asymmetric"`` (the perturbed prediction gives x_0, the clean one the
            direction; DreamDA's figure, and Asyrp, arXiv:2210.10960) or ``"symmetric"`` (the
            perturbed one gives both; the authors' code). At the same noise scale the asymmetric
            rule moves a sample further, the more so the finer the steps.
        guidance_scale: classifier-free guidance, or 1 or less for none. Models without an
            unconditional branch ignore it.
        guidance_interval: start and end of the guided part of the run, as shares of its steps;
            outside, a sample takes one U-Net row (Kynkäänniemi et al. 2024, arXiv:2404.07724).
        source_prompt: the condition of the inversion; "" is the unconditional branch, one U-Net row
            per step.
        paths: independent inversions per image; replica k uses path k modulo ``paths``.
    """

    steps: int = 100
    strength: float | None = 0.8
    eta: float = 1.0
    solver: SolverName = "ddim"
    timestep_spacing: Literal["uniform", "scheduler"] = "uniform"
    inversion: CycleDiffusion | DDIMInversion = field(default_factory=CycleDiffusion)
    replay: float | None = 1.0
    replay_interval: tuple[float, float] = (0.0, 1.0)
    noise_scale: float | None = 1.0
    perturbation: Perturbation = field(default_factory=BottleneckNoise)
    update_rule: Literal["asymmetric", "symmetric"] = "asymmetric"
    guidance_scale: float = 7.5
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    source_prompt: str = ""
    paths: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("steps", "paths"):
            whole(name, getattr(self, name), 1, _MAX_STEPS)
        for name, (rule, low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None:
                rule += " or be None (calibrated)" if name in DIALS else ""
                real(name, value, rule, low, high)
        for name in ("guidance_interval", "replay_interval"):
            start, stop = getattr(self, name)
            if not 0 <= start <= stop <= 1:
                raise ValueError(f"{name} must rise within [0, 1], got {(start, stop)}.")
        if self.eta > 0 and not self.inversion.records_residuals and self.replay != 0:
            raise ValueError(
                f"DDIMInversion(exact=False) keeps x_T alone, which leads back to the image only "
                f"with eta=0, got eta={self.eta}. Set eta=0, or exact=True."
            )

    @property
    def open_dials(self) -> tuple[str, ...]:
        """The dials that are None, and take what `calibrate` found."""
        return tuple(name for name in DIALS if getattr(self, name) is None)

    def with_dials(self, **dials: float) -> "ResolvedSettings":
        """The same settings with numbers for all dials.

        Args:
            dials: by name; the others must be numbers already.
        """
        return ResolvedSettings(**vars(self) | dials)

    @property
    def forgets_seed(self) -> bool:
        """Whether nothing of the seed image is left but its class."""
        return self.strength == 1 and self.replay == 0

    def guides_at(self, step: int, steps: int) -> bool:
        """Whether guidance is applied in this step of a run of so many, where the model can."""
        start, stop = self.guidance_interval
        return self.guidance_scale > 1 and start <= step / steps < stop

    def summary(self) -> str:
        """The settings that differ from the paper's, as one line."""
        default = PRESETS["paper"]
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self)
                   if getattr(self, f.name) != getattr(default, f.name)]
        return ", ".join(changed) or "paper"


@dataclass(frozen=True)
class ResolvedSettings(Settings):
    """`Settings` in which every dial is a number, as a run needs them."""

    strength: float = 0.8
    replay: float = 1.0
    noise_scale: float = 1.0

    def replay_at(self, step: int, steps: int) -> float:
        """The share of the residual that is replayed in this step of a run of so many."""
        start, stop = self.replay_interval
        return self.replay if start <= step / steps < stop else 0.0


# Sources: [fig] DreamDA's method figure, [code] the authors' released generator, [ours].
PRESETS: dict[str, Settings] = {
    # The figure's rule with the released run's numbers: 100 steps, strength 0.8, eta 1, guidance
    # 7.5, empty source prompt [code]; asymmetric rule [fig]. The paper's noise scale for this rule
    # is not known; 1 × RMS(h), shared by both guidance branches, is ours.
    "paper": Settings(timestep_spacing="scheduler"),
    # What the released code runs [code]: symmetric rule, absolute scale 3, drawn independently for
    # the two guidance rows. The scale belongs to SD 1.5 at guidance 7.5 and to nothing else.
    "official": Settings(
        noise_scale=3.0,
        perturbation=BottleneckNoise(relative=False, shared=False),
        update_rule="symmetric",
        timestep_spacing="scheduler",
    ),
    # Exact replay ties a sample to its seed image so tightly that noise alone hardly moves it;
    # more strength and less replay free it. How much of all three a model bears is measured
    # on the user's own images [ours].
    "recommended": Settings(steps=10, solver="dpmsolver++", update_rule="symmetric", strength=None,
                            replay=None, noise_scale=None, guidance_scale=2.0),
}
# Two thirds of its cost, with hardly less fidelity on the bundled model (docs/dials.md) [ours].
PRESETS["fast"] = replace(PRESETS["recommended"], steps=6)
# Plain samples of the seed image's class, from pure noise: what our study found best with five
# images per class or fewer, where the model knows the classes (docs/evidence.md) [ours].
PRESETS["samples"] = replace(PRESETS["recommended"], eta=0.0, strength=1.0, replay=0.0,
                             noise_scale=0.0)


def resolve_settings(settings: Settings | str, **overrides: Any) -> Settings:
    """A preset's name or a value, with some dials changed.

    Raises:
        ValueError: there is no such preset.
        TypeError: there is no such dial, or ``settings`` is of another type.
    """
    if isinstance(settings, str):
        if settings not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {settings!r}.")
        settings = PRESETS[settings]
    if not isinstance(settings, Settings):
        raise TypeError(f"preset must be a name or Settings, got {type(settings).__name__}.")
    known = {f.name for f in fields(Settings)}
    for name in overrides:
        if name not in known:
            raise TypeError(f"{name!r} is no setting; the settings are {', '.join(sorted(known))}.")
    return replace(settings, **overrides)
