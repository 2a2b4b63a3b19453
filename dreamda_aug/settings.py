"""All dials of generation in one value, and the presets."""

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from dreamda_aug.inversion import CycleDiffusion, DDIMInversion
from dreamda_aug.perturbation import BottleneckNoise, Perturbation


@dataclass(frozen=True)
class Settings:
    """How images are inverted and generated.

    Attributes:
        steps: reverse steps from pure noise to the image; ``strength`` of them are run.
        strength: share of the steps that is run, in (0, 1]; higher moves images further.
        eta: 0 is deterministic DDIM, 1 is DDPM.
        inversion: how the source path is made.
        adherence: share of the recorded residual that is replayed, in [0, 1]:
            step = mean + adherence·residual + sqrt(1 - adherence²)·std·fresh noise. 1 is DreamDA.
            0 replays nothing, x_T is drawn afresh too, no inversion is made: that is img2img
            (SDEdit, arXiv:2108.01073) [ours]. ``"auto"``: what `calibrate` found.
        noise_scale: how much noise is added to the bottleneck, >= 0; ``"auto"``: what `calibrate`
            found for this backbone.
        perturbation: what is added to the bottleneck; `BottleneckNoise`.
        update_rule: ``"asymmetric"`` (the perturbed prediction gives x_0, the clean one the
            direction; DreamDA's figure, and Asyrp, arXiv:2210.10960) or ``"symmetric"`` (the
            perturbed one gives both; the authors' code). At the same noise scale the asymmetric
            rule moves a sample further, the more so the finer the steps.
        guidance_scale: classifier-free guidance; 1 or less: none. Backbones without an
            unconditional branch ignore it.
        guidance_interval: from where to where in the run guidance is applied, as shares of its
            steps, (0, 1) is all of it; outside, one U-Net row per sample is enough
            (Kynkäänniemi et al. 2024, arXiv:2404.07724).
        source_prompt: what the inversion is told; "" is the unconditional branch, one U-Net row
            per step.
        paths: independent inversions per image; replica k uses path k modulo ``paths``.
    """

    steps: int = 100
    strength: float = 0.8
    eta: float = 1.0
    inversion: CycleDiffusion | DDIMInversion = field(default_factory=CycleDiffusion)
    adherence: float | Literal["auto"] = 1.0
    noise_scale: float | Literal["auto"] = 1.0
    perturbation: Perturbation = field(default_factory=BottleneckNoise)
    update_rule: Literal["asymmetric", "symmetric"] = "asymmetric"
    guidance_scale: float = 7.5
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    source_prompt: str = ""
    paths: int = 1

    def __post_init__(self) -> None:
        def check(condition: bool, name: str, rule: str) -> None:
            if not condition:
                raise ValueError(f"{name} must {rule}, got {getattr(self, name)!r}.")

        check(isinstance(self.steps, int) and self.steps >= 1, "steps", "be a positive integer")
        check(0 < self.strength <= 1, "strength", "lie in (0, 1]")
        check(0 <= self.eta <= 1, "eta", "lie in [0, 1]")
        check(self.adherence == "auto" or (isinstance(self.adherence, int | float)
              and 0 <= self.adherence <= 1), "adherence", "lie in [0, 1] or be 'auto'")
        check(self.noise_scale == "auto" or (isinstance(self.noise_scale, int | float)
              and self.noise_scale >= 0), "noise_scale", "be a number >= 0 or 'auto'")
        check(self.update_rule in ("asymmetric", "symmetric"), "update_rule",
              "be 'asymmetric' or 'symmetric'")
        check(self.guidance_scale >= 0, "guidance_scale", "be >= 0")
        start, stop = self.guidance_interval
        check(0 <= start <= stop <= 1, "guidance_interval", "rise within [0, 1]")
        check(isinstance(self.paths, int) and self.paths >= 1, "paths", "be a positive integer")
        if self.eta > 0 and not self.inversion.records_residuals and self.adherence != 0:
            raise ValueError(
                f"DDIMInversion(exact=False) keeps x_T alone, which leads back to the image only "
                f"with eta=0, got eta={self.eta}. Set eta=0, or exact=True."
            )

    def summary(self) -> str:
        """The settings that differ from the paper's, as one line."""
        default = Settings()
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self)
                   if getattr(self, f.name) != getattr(default, f.name)]
        return ", ".join(changed) or "paper"


# Sources: [fig] DreamDA's method figure, [code] the authors' released generator, [ours].
PRESETS: dict[str, Settings] = {
    # The figure's rule with the released run's numbers: 100 steps, strength 0.8, eta 1, guidance
    # 7.5, empty source prompt [code]; asymmetric rule [fig]. The paper's noise scale for this rule
    # is not known; 1 × RMS(h), shared by both guidance branches, is ours.
    "paper": Settings(),
    # What the released code runs [code]: symmetric rule, absolute scale 3, drawn independently for
    # the two guidance rows. The scale belongs to SD 1.5 at guidance 7.5 and to nothing else.
    "official": Settings(
        noise_scale=3.0,
        perturbation=BottleneckNoise(relative=False, shared=False),
        update_rule="symmetric",
    ),
    # A quarter of the steps at the same strength, one decoder pass instead of two, and guidance in
    # the middle of the run only, where arXiv:2404.07724 found it to matter [ours].
    "fast": Settings(steps=25, update_rule="symmetric", noise_scale=4.0,
                     guidance_interval=(0.2, 0.8)),
    # Exact replay ties a sample to its seed image so tightly that noise alone hardly moves it;
    # less adherence frees it. How much of both a backbone bears is measured on the user's own
    # images [ours].
    "recommended": Settings(steps=50, strength=0.5, adherence="auto",
                            noise_scale="auto", guidance_scale=2.0),
}


def resolve_settings(settings: Settings | str, **overrides) -> Settings:
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
