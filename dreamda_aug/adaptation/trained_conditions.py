"""What images are trained under: nothing, a prompt, or a row of the class embedding."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamda_aug.errors import ModelError
from dreamda_aug.inputs.labels import plain_name
from dreamda_aug.inputs.prompts import Conditioner
from dreamda_aug.models.conditioning import ClassConditioning
from dreamda_aug.models.unet import UNetModel

ClassMap = Mapping[str, str | int]


class FixedConditions:
    """Conditions that are not trained: the prompt of each class, or none; embedded once."""

    def __init__(self, model: UNetModel, prompts: Mapping[str, str]):
        self.can_drop = model.guidable
        self.parameters: dict[str, nn.Parameter] = {}
        self.started_from = {name: repr(prompt) for name, prompt in prompts.items()}
        # the unconditional row is the last one, which -1 picks
        self._embedded = model.embed([*prompts.values(), None])
        model.embed_only([*prompts.values(), None])

    def rows(self, labels: Tensor) -> dict[str, Tensor]:
        """Denoiser inputs with one row for each label, (B,) int64; -1 is no class."""
        return {name: values[labels.to(values.device)] for name, values in self._embedded.items()}

    @contextmanager
    def off(self) -> Iterator[None]:
        """A context in which conditions are those of the model before training: always."""
        yield


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
    are, and images are trained under the null class. The model's embedding is replaced;
    ``class_names`` and ``null_class`` are its classes from then on.

    Args:
        model: a class-conditional model of the caller's own.
        classes: names of the user's classes, in label order; empty: there are none.
        class_map: for a class of another name, the model's own class, by name or row.

    Raises:
        ModelError: the model's embedding is no table; or there are neither labels nor a null
            class.
        ValueError: ``class_map`` names what is not there.
    """

    def __init__(self, model: UNetModel, classes: Sequence[str], class_map: ClassMap):
        conditioning = model.conditioning
        table = getattr(model.unet, "class_embedding", None)
        if not isinstance(conditioning, ClassConditioning) or not isinstance(table, nn.Embedding):
            raise ModelError(
                f"{model.name} has no table of class embeddings "
                f"({type(table).__name__}), so there are no rows to train; pass another model.")
        old, null = table.weight.detach(), conditioning.null_class
        if not classes and null is None:
            raise ModelError(
                f"{model.name} is class-conditional without a null class, so images without "
                "labels cannot be trained; give labels, or null_class=... to ModelSpec.")
        self.can_drop, self.null_class = null is not None, null
        self.class_names = conditioning.class_names
        self.started_from: dict[str, str] = {}
        initial = old.clone()
        if classes:
            known = conditioning.class_names or []
            elsewhere = old.mean(0) if null is None else old[null]
            starts = []
            for name, row in _find_rows(classes, class_map, known, len(old), model.name).items():
                starts.append(elsewhere if row is None else old[row])
                if row is None:
                    begun = "the null class" if self.can_drop else "the mean of all classes"
                else:
                    begun = f"class {known[row]!r}" if row < len(known) else f"row {row}"
                self.started_from[name] = begun
            initial = torch.stack([*starts, *([] if null is None else [old[null]])])
            self.class_names = list(classes)
            self.null_class = None if null is None else len(classes)
        self._table = _Rows(initial).to(old.device)
        model.unet.class_embedding = self._table
        self.parameters: dict[str, nn.Parameter] = {"class_rows": self._table.delta}

    def rows(self, labels: Tensor) -> dict[str, Tensor]:
        """Denoiser inputs with one row for each label, (B,) int64; -1 is no class."""
        labels = torch.where(labels < 0, self.null_class or 0, labels)
        return {"class_labels": labels.to(self._table.delta.device)}

    @contextmanager
    def off(self) -> Iterator[None]:
        """A context in which rows are those of before training."""
        self._table.is_on = False
        try:
            yield
        finally:
            self._table.is_on = True

    def embedding(self) -> Tensor:
        """The rows as they are now, (classes, D), on the CPU."""
        return (self._table.initial.float() + self._table.delta.detach()).cpu()


Conditioned = FixedConditions | ClassRows


def prepare_conditions(
    model: UNetModel, classes: Sequence[str], prompt: str, class_map: ClassMap
) -> Conditioned:
    """The conditions that a model of this kind is trained under.

    Args:
        model: the model, the caller's own.
        classes: names of the user's classes; empty: images have no labels.
        prompt: template with ``{class_name}`` and ``{article}``, for text models.
        class_map: see `ClassRows`.

    Raises:
        ValueError: an argument that suits another kind of model.
    """
    kind = model.condition_kind
    if class_map and (kind != "class" or not classes):
        raise ValueError("class_map is for class-conditional models and images with labels, got "
                         f"{dict(class_map)!r} for {model.name}.")
    if kind == "class":
        return ClassRows(model, classes, class_map)
    if kind == "none":
        return FixedConditions(model, {})
    conditioner = Conditioner(classes or None, prompt)
    return FixedConditions(model, {name: str(conditioner.condition(label, model))
                                   for label, name in enumerate(classes)})


def _find_rows(
    classes: Sequence[str], class_map: ClassMap, known: Sequence[str], count: int, model: str
) -> dict[str, int | None]:
    """The model's row for each of the user's classes, or None where it has none."""
    by_name = {plain_name(name): row for row, name in enumerate(known)}
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
                f"class_map must name classes of {model} ({list(known)}) or rows 0 to "
                f"{count - 1}, got {wanted!r} for {name!r}.")
        rows[name] = row
    return rows
