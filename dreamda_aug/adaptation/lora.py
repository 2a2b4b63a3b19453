"""A diffusion model with LoRA layers that can be trained, and switched off."""

import copy
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreamda_aug.adaptation.objective import Noised
from dreamda_aug.adaptation.trained_conditions import Conditioned
from dreamda_aug.errors import ModelError
from dreamda_aug.method.seeding import derive_seed
from dreamda_aug.models import ModelSpec
from dreamda_aug.models.conditioning import ClassConditioning
from dreamda_aug.models.latent import LatentModel
from dreamda_aug.models.load import as_model
from dreamda_aug.models.unet import PixelModel

# The models that can be adapted.
Adaptable = PixelModel | LatentModel

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")


class AdaptedModel:
    """A model with LoRA layers on its attention and its convolutions.

    The caller's own model is changed and frozen. The LoRA matrices begin such that they change
    nothing; their scale is 1: alpha is the rank. ``parameters`` are float32.
    """

    def __init__(
        self, model: Adaptable, conditions: Conditioned, rank: int, rng_seed: int,
        prior_weight: float = 0.0,
    ):
        self.model, self.conditions, self.prior_weight = model, conditions, prior_weight
        self.can_drop, self.device, self.dtype = conditions.can_drop, model.device, model.dtype
        model.unet.requires_grad_(False)
        self._lora = add_lora(model.unet, rank, rng_seed)
        for parameter in conditions.parameters.values():
            parameter.requires_grad_(True)
        self.parameters: dict[str, nn.Parameter] = {**self._lora, **conditions.parameters}
        self._layers = _lora_layers(model.unet)

    def losses(self, noised: Noised, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The error, and what is minimized: with the distance to the model's own prediction."""
        # without autocast: frozen weights run in their own precision, as they do in generation
        output = self.model.denoise(noised.x_t, noised.t, self.conditions.rows(labels))
        error = (output - noised.target).square().mean()
        if not self.prior_weight:
            return error, error
        prior = self.predict_before(noised.x_t, noised.t, labels)
        return error, error + self.prior_weight * (output - prior).square().mean()

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The denoiser's output, (B, C, H, W)."""
        return self.model.denoise(x_t, t, self.conditions.rows(labels))

    @torch.no_grad()
    def predict_before(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The output of the model without adaptation, (B, C, H, W)."""
        with self._off(), self.conditions.off():
            return self.model.denoise(x_t, t, self.conditions.rows(labels))

    def after_step(self) -> None:
        """Nothing more is to be done."""

    def kept(self) -> dict[str, Tensor]:
        """A copy of everything that is trained, on the CPU."""
        return {name: parameter.detach().to("cpu", copy=True).contiguous()
                for name, parameter in self.parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """The same: nothing else is needed to resume."""
        return self.kept()

    @torch.no_grad()
    def set_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Set what `kept` returned."""
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])

    def lora_tensors(self) -> dict[str, Tensor]:
        """The LoRA matrices, by the names ``LAYER.lora_A.weight`` and ``LAYER.lora_B.weight``."""
        return {name: tensor for name, tensor in self.kept().items() if name in self._lora}

    @contextmanager
    def _off(self) -> Iterator[None]:
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)


def own_model(source: Any) -> Adaptable:
    """A model that may be changed: loaded anew, or with a copy of a lent one's denoiser.

    Args:
        source: what `load_model` takes, a `ModelSpec` or a loaded model.

    Raises:
        ModelError: it is no U-Net model, or LoRA weights are in it already.
    """
    model = as_model(source)
    if not isinstance(model, PixelModel | LatentModel):
        raise ModelError(
            f"{model.name} ({type(model).__name__}) cannot be adapted: only models with a "
            "U-Net can, such as Stable Diffusion 1.x, 2.x and XL.")
    if model.lora is not None or _lora_layers(model.unet):
        raise ModelError(
            f"{model.name} has LoRA weights already ({model.lora or 'loaded by diffusers'}); "
            "adapt the model without them.")
    return model if is_named(source) else _with_own_denoiser(model)


def is_named(source: Any) -> bool:
    """Whether a model is loaded for this call, and nobody else uses it."""
    return isinstance(source, str | Path) or (isinstance(source, ModelSpec) and source.is_named)


def _with_own_denoiser(model: Adaptable) -> Adaptable:
    """The same model with a copy of its denoiser; what is not changed is shared."""
    unet = model.unet
    other: Any = type(unet).from_config(unet.config)
    # nn.Module's own method: diffusers' one warns at every change of dtype
    nn.Module.to(other, unet.device, unet.dtype)
    other.load_state_dict(unet.state_dict())
    pipeline = copy.copy(model.pipeline)
    pipeline.unet = other
    conditioning = model.conditioning
    null_class = conditioning.null_class if isinstance(conditioning, ClassConditioning) else None
    if isinstance(model, LatentModel):
        return LatentModel(pipeline, model.name, model.image_size,
                           model.class_names, null_class)
    return PixelModel(pipeline, model.name, model.class_names, null_class)


def add_lora(denoiser: Any, rank: int, rng_seed: int) -> dict[str, nn.Parameter]:
    """LoRA layers on attention and convolutions; their parameters, by name."""
    from peft import LoraConfig, inject_adapter_in_model

    targets = [re.escape(name) for name, layer in denoiser.named_modules()
               if isinstance(layer, nn.Conv2d) and layer.groups == 1
               or isinstance(layer, nn.Linear) and name.endswith(_ATTENTION)]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="|".join(targets))
    # peft draws from the global generator, which is not ours; the start is drawn again below
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, denoiser)
    generator = torch.Generator().manual_seed(derive_seed(rng_seed, "lora"))
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in denoiser.named_parameters():
        if ".lora_A." in name:
            start = torch.empty(parameter.shape)
            # as peft's own start, which is torch's for linear layers
            nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            parameter.data = start.to(parameter.device)
        elif ".lora_B." in name:
            parameter.data = torch.zeros_like(parameter, dtype=torch.float32)
        else:
            continue
        parameter.requires_grad_(True)
        parameters[name.replace(".default.", ".")] = parameter
    return parameters


def _lora_layers(denoiser: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [part for part in denoiser.modules() if isinstance(part, BaseTunerLayer)]
