"""What each image is trained under: nothing, a prompt, a learned token, a row of the embedding."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamda_aug.adaptation.settings import AdaptationSettings
from dreamda_aug.errors import ModelError
from dreamda_aug.inputs.labels import plain_name
from dreamda_aug.inputs.prompts import Conditioner
from dreamda_aug.models.adapted import Conditions
from dreamda_aug.models.conditioning import ClassConditioning, TextConditioning
from dreamda_aug.models.unet import UNetModel

ClassMap = Mapping[str, str | int]


class Conditioned(Protocol):
    """Conditions of training rows, by label; -1 is no class.

    Attributes:
        can_drop: whether there is an unconditional branch.
        parameters: what is trained, float32, by name.
        started_from: for each class, in words, what it was before training.
    """

    can_drop: bool
    parameters: dict[str, nn.Parameter]
    started_from: dict[str, str]

    def rows(self, labels: Tensor) -> dict[str, Tensor]:
        """Denoiser inputs with one row for each label, (B,) int64."""
        ...

    def prior(self, labels: Tensor) -> dict[str, Tensor]:
        """The same as the model had them before training, inside `off`."""
        ...

    def off(self) -> Any:
        """A context in which the model's own conditions are those of before."""
        ...

    def found(self) -> Conditions:
        """What the adapted model is conditioned on."""
        ...

    def files(self) -> dict[str, Tensor]:
        """What is saved beside the LoRA weights; empty where nothing is."""
        ...


class FixedConditions:
    """Conditions that are not trained: none, or plain prompts, embedded once.

    Args:
        model: the model.
        prompts: of each class; empty: all images are trained under the unconditional branch.
    """

    def __init__(self, model: UNetModel, prompts: Sequence[str]):
        self.can_drop = model.guidable
        self.parameters: dict[str, nn.Parameter] = {}
        self.started_from = {prompt: "the prompt" for prompt in prompts}
        # the unconditional row is the last one, which -1 picks
        self._embedded = model.embed([*prompts, None])
        model.embed_only([*prompts, None])

    def rows(self, labels: Tensor) -> dict[str, Tensor]:
        return {name: values[labels.to(values.device)] for name, values in self._embedded.items()}

    def prior(self, labels: Tensor) -> dict[str, Tensor]:
        return self.rows(labels)

    @contextmanager
    def off(self) -> Iterator[None]:
        yield

    def found(self) -> Conditions:
        return Conditions()

    def files(self) -> dict[str, Tensor]:
        return {}


class _Rows(nn.Module):
    """An embedding whose rows move away from where they began."""

    def __init__(self, initial: Tensor):
        super().__init__()
        self.initial = nn.Buffer(initial)
        self.delta = nn.Parameter(torch.zeros_like(initial, dtype=torch.float32))
        self.is_on = True

    def forward(self, labels: Tensor) -> Tensor:
        rows = F.embedding(labels, self.initial)
        return rows + F.embedding(labels, self.delta) if self.is_on else rows


class ClassRows:
    """Rows of a class embedding: one for each of the user's classes, and the null class.

    A class that the model knows by name begins as a copy of its row; any other at the null class,
    or, in a model without one, at the mean of all rows. Without classes the rows stay what they
    are, and images are trained under the null class.

    Args:
        model: a class-conditional model of the caller's own; its embedding is replaced.
        classes: names of the user's classes, in label order; empty: there are none.
        class_map: for a class of another name, the model's own class, by name or row.

    Raises:
        ModelError: the model's embedding is no table; or there are neither labels nor a null
            class.
        ValueError: ``class_map`` names what is not there.
    """

    def __init__(self, model: UNetModel, classes: Sequence[str], class_map: ClassMap):
        conditioning = model.conditioning
        assert isinstance(conditioning, ClassConditioning)
        table = getattr(model.unet, "class_embedding", None)
        if not isinstance(table, nn.Embedding):
            raise ModelError(
                f"{model.name} has no table of class embeddings "
                f"({type(table).__name__}), so there are no rows to train; pass another model.")
        old, null = table.weight.detach(), conditioning.null_class
        if not classes and null is None:
            raise ModelError(
                f"{model.name} is class-conditional without a null class, so images without "
                "labels cannot be trained; give labels, or null_class=... to ModelSpec."
            )
        self._classes = list(classes)
        self.can_drop = null is not None
        self.started_from = {}
        if classes:
            elsewhere = old.mean(0) if null is None else old[null]
            starts = []
            for name, row in _find_rows(classes, class_map, conditioning.class_names, len(old),
                                        model.name).items():
                known = (conditioning.class_names or [])[row:row + 1] if row is not None else []
                self.started_from[name] = (
                    ("the null class" if self.can_drop else "the mean of all classes")
                    if row is None else f"class {known[0]!r}" if known else f"row {row}")
                starts.append(elsewhere if row is None else old[row])
            initial = torch.stack([*starts, *([] if null is None else [old[null]])])
            self._null = len(classes)
            self._found = Conditions(self._classes, self._null if self.can_drop else None)
        else:
            initial, self._null = old.clone(), int(null or 0)
            self._found = Conditions(conditioning.class_names, null)
        self._table = _Rows(initial).to(old.device)
        model.unet.class_embedding = self._table
        self.parameters = {"class_rows": self._table.delta}

    def rows(self, labels: Tensor) -> dict[str, Tensor]:
        labels = torch.where(labels < 0, self._null, labels)
        return {"class_labels": labels.to(self._table.delta.device)}

    def prior(self, labels: Tensor) -> dict[str, Tensor]:
        return self.rows(labels)

    @contextmanager
    def off(self) -> Iterator[None]:
        self._table.is_on = False
        try:
            yield
        finally:
            self._table.is_on = True

    def found(self) -> Conditions:
        return self._found

    def files(self) -> dict[str, Tensor]:
        rows = self._table.initial.float() + self._table.delta.detach()
        return {"rows": rows.cpu()}


def prepare_conditions(
    model: UNetModel, classes: Sequence[str], settings: AdaptationSettings,
    prompt: str, class_map: ClassMap,
) -> Conditioned:
    """The conditions that a model of this kind is trained under.

    Args:
        model: the model, the caller's own.
        classes: names of the user's classes; empty: images have no labels.
        settings: ``tokens`` plays a role.
        prompt: template with ``{class_name}`` and ``{article}``, for text models.
        class_map: see `ClassRows`.

    Raises:
        ValueError: an argument that suits another kind of model.
    """
    kind = model.condition_kind
    if class_map and (kind != "class" or not classes):
        raise ValueError(
            "class_map is for class-conditional models and images with labels, got "
            f"{dict(class_map)!r} for {model.name}."
        )
    if settings.tokens == "learned" and (kind != "text" or not classes):
        raise ValueError(
            "tokens must be 'prompt' unless the model is a text-to-image one and the images "
            f"have labels, got 'learned' for {model.name}."
        )
    if kind == "class":
        return ClassRows(model, classes, class_map)
    if kind == "none":
        return FixedConditions(model, [])
    conditioner = Conditioner(classes or None, prompt)
    prompts = [str(conditioner.condition(label, model)) for label in range(len(classes))]
    if settings.tokens == "learned":
        from dreamda_aug.adaptation.tokens import LearnedTokens

        return LearnedTokens(model, classes, prompts)
    assert isinstance(model.conditioning, TextConditioning)
    fixed = FixedConditions(model, prompts)
    fixed.started_from = dict(zip(classes, map(repr, prompts), strict=True))
    return fixed


def _find_rows(
    classes: Sequence[str], class_map: ClassMap, known: Sequence[str] | None, count: int,
    model: str,
) -> dict[str, int | None]:
    """The model's row for each of the user's classes; None: it has none."""
    by_name = {plain_name(name): row for row, name in enumerate(known or [])}
    unknown = class_map.keys() - set(classes)
    if unknown:
        raise ValueError(
            f"class_map names {sorted(unknown)[0]!r}, which is not one of the classes "
            f"{list(classes)}.")
    rows: dict[str, int | None] = {}
    for name in classes:
        wanted = class_map.get(name, name)
        row = wanted if isinstance(wanted, int) else by_name.get(plain_name(wanted))
        if row is None and name in class_map and str(wanted).isdecimal():
            row = int(wanted)
        if name in class_map and (row is None or not 0 <= row < count):
            raise ValueError(
                f"class_map must name classes of {model} ({list(known or [])}) or rows 0 to "
                f"{count - 1}, got {wanted!r} for {name!r}.")
        rows[name] = row
    return rows
