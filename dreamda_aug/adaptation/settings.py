"""How an adaptation is trained."""

from dataclasses import dataclass
from typing import Literal

from dreamda_aug.adaptation.loop import LoopSettings
from dreamda_aug.arguments import check_fields, real, whole

TokenKind = Literal["prompt", "learned"]

# Steps with early stopping, where no number is given: few images stop long before.
DEFAULT_STEPS = 1000
_PIXEL_RATE, _LATENT_RATE = 1e-3, 1e-4


@dataclass(frozen=True)
class AdaptationSettings:
    """The settings of `adapt`.

    Attributes:
        rank: of the LoRA matrices. A low rank, like early stopping, keeps few images from being
            learned by heart.
        train_steps: optimizer steps at most; None: 1,000, where early stopping is on.
        learning_rate: of AdamW, after 20 steps of warm-up; None: 1e-3 for pixel models, which are
            small, and 1e-4 for latent ones, as diffusers' own LoRA scripts have it.
        batch_size: images per denoiser call.
        accumulate: batches per optimizer step.
        prior_weight: how strongly the denoiser is held to what it predicted before, on the same
            noisy image: the weight of the squared distance between both predictions, beside 1 for
            the squared error. 0: not at all. The prediction is shrunk towards the prior's by
            1 / (1 + prior_weight).
        label_dropout: share of images that are trained without their class or prompt, so that
            guidance goes on working; for models that know such a branch.
        held_out: share of the images that are not trained on but measured on, in (0, 0.5]; at
            least 4 images (half of fewer than 8), at most 64.
        evaluate_every: steps between two measurements.
        patience: measurements without a new lowest held-out loss after which training stops.
        early_stopping: False: train on every image, for exactly ``train_steps`` steps; measure
            nothing.
        tokens: for text models: ``"prompt"`` trains under the plain prompt of a class;
            ``"learned"`` also learns a token for each class, as textual inversion does.
        gradient_checkpointing: compute activations twice instead of keeping them.
        rng_seed: another one gives another result.

    Raises:
        ValueError: an attribute breaks its rule.

    Source: LoRA: Hu et al. 2021, arXiv:2106.09685. ``prior_weight``: learning without forgetting,
        Li & Hoiem 2016, arXiv:1606.09282, here with the squared distance of predictions.
        ``tokens``: Gal et al. 2022, arXiv:2208.01618. ``label_dropout``: Ho & Salimans 2022,
        arXiv:2207.12598.
    """

    rank: int = 8
    train_steps: int | None = None
    learning_rate: float | None = None
    batch_size: int = 8
    accumulate: int = 1
    prior_weight: float = 0.1
    label_dropout: float = 0.1
    held_out: float = 0.2
    evaluate_every: int = 25
    patience: int = 5
    early_stopping: bool = True
    tokens: TokenKind = "prompt"
    gradient_checkpointing: bool = False
    rng_seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("rank", "batch_size", "accumulate", "evaluate_every", "patience"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 1))
        object.__setattr__(self, "rng_seed", whole("rng_seed", self.rng_seed, 0, 2**63 - 1))
        if self.train_steps is not None:
            object.__setattr__(self, "train_steps", whole("train_steps", self.train_steps, 1))
        elif not self.early_stopping:
            raise ValueError("train_steps must be given where early_stopping is False, got None.")
        if self.learning_rate is not None:
            object.__setattr__(self, "learning_rate", real(
                "learning_rate", self.learning_rate, "lie in (0, 1]", 1e-12, 1.0))
        for name, rule, low, high in (
            ("prior_weight", "be at least 0", 0.0, float("inf")),
            ("label_dropout", "lie in [0, 1]", 0.0, 1.0),
            ("held_out", "lie in (0, 0.5]", 1e-6, 0.5),
        ):
            object.__setattr__(self, name, real(name, getattr(self, name), rule, low, high))

    def loop(self, is_pixel_model: bool) -> LoopSettings:
        """What the training loop is given; the learning rate is a number there."""
        return LoopSettings(
            train_steps=DEFAULT_STEPS if self.train_steps is None else self.train_steps,
            learning_rate=self.learning_rate or (_PIXEL_RATE if is_pixel_model else _LATENT_RATE),
            batch_size=self.batch_size, accumulate=self.accumulate,
            label_dropout=self.label_dropout, evaluate_every=self.evaluate_every,
            patience=self.patience, rng_seed=self.rng_seed)
