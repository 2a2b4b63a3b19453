"""The arms of the accuracy study; `training` says how one is trained."""

from dataclasses import dataclass, field

from benchmarks.accuracy.tasks import Task
from benchmarks.common.amst_parts import AMSTOptions
from dreamda_aug.amst import HeadViews


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: as the table shows it.
        pool: ``""``, ``"copies"``, ``"img2img"``, ``"noise"`` or ``"dreamda"``.
        labels: of the pool: ``"seed"``, ``"soft"`` (a single head's probabilities), ``"amst"``,
            ``"probe"`` (a linear probe's probabilities, from the diffusion model's features; the
            probe itself where there is no pool) or ``"oracle"`` (the judge's).
        view: ``"none"``, ``"weak"``, or a per-image operation on top of it.
        mix: MixUp or CutMix over the batch.
        tuned_for: which settings the images are made with: those chosen on validation for
            ``"seed"`` labels, for ``"amst"`` or for ``"probe"`` labels.
        unlabelled: real images without labels join the pool.
        weak: of the weak view, probability of a mirrored image and largest shift, as a share of
            the image's side.
        amst: what differs of AMST, where it labels the pool or trains on it.
    """

    name: str
    pool: str = ""
    labels: str = "seed"
    view: str = "weak"
    mix: str = ""
    tuned_for: str = "amst"
    unlabelled: bool = False
    weak: tuple[float, float] = (0.5, 0.125)
    amst: AMSTOptions = field(default_factory=AMSTOptions)

    @property
    def is_classical(self) -> bool:
        """Whether labelled images alone are trained on, augmented, without a diffusion model."""
        return not self.pool and self.labels == "seed" and self.view != "none"


# The main head, too, learns labelled images in their strong view, which is close to RandAugment.
STRONG = AMSTOptions(HeadViews(main="strong"))

ARMS = (
    Arm("real only", view="none"),
    Arm("duplicate-real", "copies", view="none"),
    Arm("flip + crop"),
    Arm("RandAugment", view="RandAugment"),
    Arm("TrivialAugment", view="TrivialAugmentWide"),
    Arm("AugMix", view="AugMix"),
    Arm("MixUp", mix="MixUp"),
    Arm("CutMix", mix="CutMix"),
    Arm("Cutout", view="RandomErasing"),
    Arm("img2img, seed labels", "img2img", tuned_for="seed"),
    # what AMST gives without DreamDA's images
    Arm("img2img + AMST", "img2img", "amst"),
    Arm("samples from noise", "noise", "soft"),
    Arm("DreamDA, seed labels", "dreamda", tuned_for="seed"),
    Arm("DreamDA, soft pseudo-labels", "dreamda", "soft"),
    Arm("DreamDA + AMST", "dreamda", "amst"),
    Arm("DreamDA + AMST on RandAugment", "dreamda", "amst", amst=STRONG),
    Arm("linear probe of the backbone", labels="probe"),
    Arm("img2img, probe labels", "img2img", "probe", tuned_for="probe", amst=STRONG),
    Arm("samples from noise, probe labels", "noise", "probe", amst=STRONG),
    Arm("DreamDA, probe labels", "dreamda", "probe", tuned_for="probe", amst=STRONG),
    Arm("DreamDA, oracle labels", "dreamda", "oracle"),
    # the ceiling of the probe's arm: the same images, labelled right
    Arm("DreamDA, oracle labels on RandAugment", "dreamda", "oracle", view="RandAugment",
        tuned_for="probe"),
)
# Further arms of tasks that have real images without labels.
UNLABELLED_ARMS = (
    Arm("AMST, unlabelled images", labels="amst", unlabelled=True),
    Arm("DreamDA + AMST, unlabelled images", "dreamda", "amst", unlabelled=True),
)


def arms_of(task: Task) -> tuple[Arm, ...]:
    """The arms that a task has."""
    arms = ARMS + (UNLABELLED_ARMS if task.unlabelled else ())
    return tuple(arm for arm in arms if task.judge or arm.labels != "oracle")
