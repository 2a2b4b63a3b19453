"""The arms of the accuracy study; `training` says how one is trained."""

from dataclasses import dataclass, field, replace

from benchmarks.accuracy.tasks import Task
from benchmarks.common.amst_parts import PLUS, AMSTOptions

# What goes on top of the weak view where it is asked for: chosen on validation.
CHOSEN = "chosen"


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: as the table shows it.
        recipe: of the synthetic images: ``""``, ``"copies"``, ``"corpus"`` (the labeled images
            that the prior was trained on), ``"hard"`` (tuned, of the third that an early
            classifier finds hardest), ``"hard copies"`` (that third itself) or a key of `RECIPES`.
        labels: of the pool: ``"seed"``, ``"soft"`` (a single head's probabilities), ``"amst"``,
            ``"prior"`` (the diffusion classifier's), ``"probe"`` (a linear probe's on the diffusion
            model's features) or ``"oracle"`` (the judge's).
        view: ``"none"``, ``"weak"``, an operation on top of it, or `CHOSEN`.
        mix: MixUp or CutMix over the batch.
        unlabeled: real images without labels join the pool.
        weak: of the weak view, probability of a mirrored image and largest shift, as a share of
            the image's side.
        amst: what differs of AMST, where it labels the pool or trains on it.
        pretrained: it starts from a classifier of the corpus.
        frozen: it learns a linear layer on frozen features of ImageNet.
        replace: probability that a labeled image is replaced by one of its replicas, or None.
        together: labeled images and replicas are drawn alike; without it and ``replace``, a third
            of each batch are labeled images.
    """

    name: str
    recipe: str = ""
    labels: str = "seed"
    view: str = "weak"
    mix: str = ""
    unlabeled: bool = False
    weak: tuple[float, float] = (0.5, 0.125)
    amst: AMSTOptions = field(default_factory=AMSTOptions)
    pretrained: bool = False
    frozen: bool = False
    replace: float | None = None
    together: bool = False

    @property
    def is_classical(self) -> bool:
        """Whether labeled images alone are trained on, augmented, without a diffusion model."""
        return not self.recipe and not self.unlabeled and self.view != "none"

    @property
    def is_diffusion(self) -> bool:
        """Whether a diffusion model made the images of its pool."""
        return self.recipe not in ("", "copies", "corpus", "hard copies")


# Recipe -> what people call it.
METHODS = {
    "noise": "samples from noise",
    "img2img": "img2img",
    "interpolation": "interpolated inversions",
    "adapted": "adapted prior, img2img",
    "paper": "DreamDA as published",
    "tuned": "DreamDA, tuned",
    "tuned_adapted": "adapted prior, DreamDA",
    "label_free": "label-free transform",
}
# The arms that the aims speak of.
OURS = ("paper", "tuned", "tuned_adapted")
WEAK, REAL = "flip + crop", "real only"
# What a plot over shots shows beside the chosen classical operation, and what --quick runs.
MAIN = (REAL, "samples from noise + classical", "img2img + classical",
        "DreamDA as published + classical", "DreamDA, tuned + classical", "DreamDA, tuned, AMST+")


def arms_of(task: Task) -> tuple[Arm, ...]:
    """The arms that a task has."""
    arms = [
        Arm(REAL, view="none"),
        Arm("duplicate-real", "copies", view="none"),
        Arm(WEAK),
        *(Arm(operation, view=operation)
          for operation in dict.fromkeys([*task.classical, "TrivialAugmentWide", "AugMix"])),
        Arm("MixUp", mix="MixUp"),
        Arm("CutMix", mix="CutMix"),
    ]
    for recipe, name in METHODS.items():
        arms += [Arm(name, recipe, view="none"), Arm(f"{name} + classical", recipe, view=CHOSEN)]
    for recipe in ("img2img", "tuned", "adapted"):
        name = METHODS[recipe]
        arms += [Arm(f"{name}, {what}", recipe, labels, view=CHOSEN)
                 for labels, what in (("soft", "single head"), ("amst", "AMST"),
                                      ("prior", "diffusion classifier"), ("probe", "probe"),
                                      ("oracle", "true labels"))]  # fmt: skip
        arms.append(Arm(f"{name}, AMST+", recipe, "amst", view=CHOSEN, amst=PLUS))
    name = METHODS["tuned"]
    if task.unlabeled:
        arms += [Arm("AMST, unlabeled images", labels="amst", view=CHOSEN, unlabeled=True),
                 *(Arm(f"{name}, {what}, unlabeled images", "tuned", "amst", view=CHOSEN,
                       unlabeled=True, amst=amst)
                   for what, amst in (("AMST", AMSTOptions()), ("AMST+", PLUS)))]  # fmt: skip
    if task.corpus:
        arms.append(Arm("the prior's own images + classical", "corpus", view=CHOSEN))
        arms += [replace(arm, name=f"pretrained, {arm.name}", pretrained=True) for arm in (
            Arm(REAL, view="none"), Arm("classical", view=CHOSEN),
            *(Arm(f"{METHODS[recipe]} + classical", recipe, view=CHOSEN)
              for recipe in ("noise", "img2img", "tuned")),
            Arm(f"{name}, AMST+", "tuned", "amst", view=CHOSEN, amst=PLUS))]  # fmt: skip
    frozen = [replace(arm, name=f"frozen features, {arm.name}", frozen=True) for arm in (
        Arm(REAL, view="none"), Arm("classical", view=CHOSEN),
        *(Arm(f"{METHODS[recipe]} + classical", recipe, view=CHOSEN)
          for recipe in ("noise", "img2img", "tuned")))]  # fmt: skip
    if task.until_when:
        hard = [Arm("hard third expanded", "hard", view=CHOSEN),
                Arm("hard third repeated", "hard copies", view=CHOSEN)]  # fmt: skip
        wanted = (*MAIN, *task.classical)
        return (*(arm for arm in arms if arm.name in wanted), *hard)
    return tuple(arm for arm in (*arms, *frozen) if task.judge or arm.labels != "oracle")
