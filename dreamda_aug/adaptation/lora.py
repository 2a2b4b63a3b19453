"""A diffusion model with LoRA layers that can be trained, and switched off."""

import copy
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamda_aug.adaptation.training_images import Noised
from dreamda_aug.adaptation.training_state import copied
from dreamda_aug.errors import ModelError
from dreamda_aug.inputs.prompts import Conditioner
from dreamda_aug.inputs.samples import match_class
from dreamda_aug.method.seeding import derive_seed
from dreamda_aug.models import ModelSpec
from dreamda_aug.models.conditioning import ClassConditioning, Condition
from dreamda_aug.models.load import as_model
from dreamda_aug.models.unet import UNetModel

ClassMap = Mapping[str, str | int]

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")


class ClassRows(nn.Module):
    """A class embedding that takes the place of the model's: a row for each of the user's classes,
    which become the model's, and one for the null class. What is trained is how far rows move away
    from where they began.

    A class that the model has by name (or by its name in ``class_map``) begins as a copy of its
    row; any other at the null class, or, in a model without one, at the mean of all rows. Without
    ``classes`` the rows stay what they are, and images are trained under the null class.
    """

    def __init__(self, model: UNetModel, classes: Sequence[str], class_map: ClassMap):
        super().__init__()
        conditioning = model.conditioning
        table = getattr(model.unet, "class_embedding", None)
        if not isinstance(conditioning, ClassConditioning) or not isinstance(table, nn.Embedding):
            raise ModelError(f"{model.name} has no table of class embeddings, and no rows to train "
                             f"({type(table).__name__}); pass another model.")
        old, null = table.weight.detach(), conditioning.null_class
        if not classes and null is None:
            raise ModelError(
                f"{model.name} is class-conditional without a null class, so images without "
                "labels cannot be trained; give labels, or null_class=... to ModelSpec.")
        self.started_from: dict[str, str] = {}
        initial = old.clone()
        if classes:
            known = conditioning.class_names or []
            begun, elsewhere = "the mean of all classes", old.mean(0)
            if null is not None:
                begun, elsewhere = "the null class", old[null]
            starts = []
            for name, row in _find_rows(classes, class_map, known, len(old), model.name).items():
                starts.append(elsewhere if row is None else old[row])
                self.started_from[name] = (
                    begun if row is None else
                    f"class {known[row]!r}" if row < len(known) else f"row {row}")
            initial = torch.stack([*starts, *([] if null is None else [old[null]])])
            model.conditioning = ClassConditioning(
                model.unet, len(initial), model.name, classes,
                None if null is None else len(classes))
            model.class_names = model.conditioning.class_names
        self.initial = nn.Buffer(initial)
        self.delta = nn.Parameter(torch.zeros_like(initial, dtype=torch.float32))
        self._is_on = True
        model.unet.class_embedding = self

    def enable_adapters(self, enabled: bool) -> None:
        """As peft's layers have it."""
        self._is_on = enabled

    def forward(self, labels: Tensor) -> Tensor:
        """Rows of these labels, (B, D)."""
        rows = F.embedding(labels, self.initial)
        return rows + F.embedding(labels, self.delta) if self._is_on else rows

    def embedding(self) -> Tensor:
        """The rows as they are now, (classes, D), on the CPU."""
        return (self.initial.float() + self.delta.detach()).cpu()


class AdaptedModel:
    """A model with LoRA on its attention and its convolutions; arguments are those of `adapt`.

    The caller's own model is changed and frozen. The LoRA matrices begin such that they change
    nothing; their scale is 1: alpha is the rank. ``parameters`` are float32. ``started_from`` has
    the class or prompt of the model that each class began as.
    """

    def __init__(
        self, model: UNetModel, classes: Sequence[str], prompt: str, class_map: ClassMap,
        rank: int, rng_seed: int, prior_weight: float = 0.0,
    ):
        kind = model.condition_kind
        if class_map and (kind != "class" or not classes):
            raise ValueError("class_map is for class-conditional models and images with labels, "
                             f"got {dict(class_map)!r} for {model.name}.")
        self.model, self._prior_weight = model, prior_weight
        self.conditions: list[Condition] = [None] * (len(classes) + 1)
        self.started_from: dict[str, str] = {}
        self.rows: ClassRows | None = None
        if kind == "class":
            self.rows = ClassRows(model, classes, class_map)
            self.started_from = self.rows.started_from
            self.conditions[:-1] = range(len(classes))
        elif kind == "text":
            conditioner = Conditioner(classes or None, prompt)
            self.conditions[:-1] = [
                conditioner.condition(label, model) for label in range(len(classes))]
            self.started_from = dict(zip(classes, map(repr, self.conditions)))
            model.embed_only(self.conditions)
        model.unet.requires_grad_(False)
        self._lora = add_lora(model.unet, rank, rng_seed)
        self.parameters = dict(self._lora)
        if self.rows is not None:
            self.rows.delta.requires_grad_(True)
            self.parameters["class_rows"] = self.rows.delta
        self.kept: dict[str, Tensor] = dict(self.parameters)
        self.state = self.kept  # nothing else changes
        self._layers = _adapters(model.unet)

    def losses(self, noised: Noised, condition: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        # without autocast: frozen weights run in their own precision, as they do in generation
        output = self.model.denoise(noised.x_t, noised.t, condition)
        error = (output - noised.target).square().mean()
        if not self._prior_weight:
            return error, error
        prior = self.predict_before(noised.x_t, noised.t, condition)
        return error, error + self._prior_weight * (output - prior).square().mean()

    @torch.no_grad()
    def predict_before(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The output of the model without adaptation, (B, C, H, W)."""
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            return self.model.denoise(x_t, t, condition)
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)

    def after_step(self) -> None:
        pass

    def lora_tensors(self) -> dict[str, Tensor]:
        """The LoRA matrices, under the names that diffusers gives them in a file."""
        return {f"unet.{name}": tensor for name, tensor in copied(self._lora).items()}


def own_model(source: Any) -> UNetModel:
    """A model that may be changed: loaded anew, or a lent one with a copy of its denoiser."""
    model = as_model(source)
    if not isinstance(model, UNetModel):
        raise ModelError(
            f"{model.name} ({type(model).__name__}) cannot be adapted: only models with a "
            "U-Net can, such as Stable Diffusion 1.x, 2.x and XL.")
    if model.lora is not None or _adapters(model.unet):
        raise ModelError(
            f"{model.name} has LoRA weights already ({model.lora or 'loaded by diffusers'}); "
            "adapt the model without them.")
    if is_named(source):
        return model
    shared = [*vars(model.pipeline).values(), getattr(model, "vae", None)]
    return copy.deepcopy(model, {id(each): each for each in shared if each is not model.unet})


def is_named(source: Any) -> bool:
    """Whether a model is loaded for this call, and nobody else uses it."""
    return isinstance(source, str | Path) or (isinstance(source, ModelSpec) and source.is_named)


def add_lora(denoiser: Any, rank: int, rng_seed: int) -> dict[str, nn.Parameter]:
    """LoRA layers on attention and convolutions; their parameters, by name."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = [re.escape(name) for name, layer in denoiser.named_modules()
               if isinstance(layer, nn.Conv2d) and layer.groups == 1
               or isinstance(layer, nn.Linear) and name.endswith(_ATTENTION)]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="|".join(targets))
    with torch.random.fork_rng(devices=[]):  # what peft draws here is not kept
        inject_adapter_in_model(config, denoiser)
    generator = torch.Generator().manual_seed(derive_seed(rng_seed, "lora"))
    parameters = {name.replace(".default.", "."): parameter
                  for name, parameter in denoiser.named_parameters() if ".lora_" in name}
    for name, parameter in parameters.items():
        start = torch.zeros(parameter.shape)
        if ".lora_A." in name:
            # peft's distribution, drawn alike by all of its versions
            nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        parameter.data = start.to(parameter.device)
    return parameters


def _adapters(denoiser: nn.Module) -> list[Any]:
    """The parts that can be switched off."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [part for part in denoiser.modules() if isinstance(part, BaseTunerLayer | ClassRows)]


def _find_rows(
    classes: Sequence[str], class_map: ClassMap, known: Sequence[str], count: int, model: str
) -> dict[str, int | None]:
    """The model's row for each of the user's classes, or None where it has none."""
    unknown = sorted(class_map.keys() - set(classes))
    if unknown:
        raise ValueError(f"class_map names {unknown[0]!r}, which is not one of the classes "
                         f"{list(classes)}.")
    rows: dict[str, int | None] = {}
    for name in classes:
        wanted = class_map.get(name, name)
        row = wanted if isinstance(wanted, int) else match_class(wanted, known)
        if row is None and name in class_map and str(wanted).isdecimal():
            row = int(wanted)
        if name in class_map and (row is None or not 0 <= row < count):
            raise ValueError(
                f"class_map must name classes of {model} ({list(known)}) or rows 0 to "
                f"{count - 1}, got {wanted!r} for {name!r}.")
        rows[name] = row
    return rows
