"""A diffusion model of one's own, with LoRA layers that can be trained, and switched off."""

import copy
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dreamda_aug.adaptation.conditions import Conditioned
from dreamda_aug.backbones import Backbone, BackboneSpec, is_backbone
from dreamda_aug.backbones.conditioning import ClassConditioning
from dreamda_aug.backbones.latent import LatentBackbone
from dreamda_aug.backbones.unet import PixelBackbone
from dreamda_aug.errors import BackboneError
from dreamda_aug.method.seeding import derive_seed

# The models that can be adapted.
Adaptable = PixelBackbone | LatentBackbone

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")


class AdaptedModel:
    """A backbone with LoRA layers on its attention and its convolutions.

    The LoRA matrices begin such that they change nothing. Their scale is 1: alpha is the rank.

    Args:
        backbone: the caller's own, on its device; its denoiser is changed and frozen.
        conditions: what images are trained under.
        rank: of the LoRA matrices.
        rng_seed: for their random half.

    Attributes:
        parameters: everything that is trained, float32, by name.

    Raises:
        ImportError: peft is not installed.
    """

    def __init__(
        self, backbone: Adaptable, conditions: Conditioned, rank: int, rng_seed: int
    ):
        self.backbone, self.conditions = backbone, conditions
        trained = conditions.parameters
        backbone.unet.requires_grad_(False)
        self._lora = add_lora(backbone.unet, rank, rng_seed)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        self.parameters: dict[str, nn.Parameter] = {**self._lora, **trained}
        self._layers = _lora_layers(backbone.unet)

    def predict(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The denoiser's output, (B, C, H, W), with gradients.

        Args:
            x_t: its input, (B, C, H, W).
            t: its time input, (B,).
            labels: (B,) int64; -1 is none.
        """
        return self.backbone.denoise(x_t, t, self.conditions.rows(labels))

    @torch.no_grad()
    def prior(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """What the model without adaptation answers, (B, C, H, W)."""
        with self._off(), self.conditions.off():
            return self.backbone.denoise(x_t, t, self.conditions.prior(labels))

    def tensors(self) -> dict[str, Tensor]:
        """A copy of everything that is trained, on the CPU."""
        return {name: parameter.detach().to("cpu", copy=True).contiguous()
                for name, parameter in self.parameters.items()}

    def lora_tensors(self) -> dict[str, Tensor]:
        """The LoRA matrices, by the names ``LAYER.lora_A.weight`` and ``LAYER.lora_B.weight``."""
        return {name: tensor for name, tensor in self.tensors().items() if name in self._lora}

    @torch.no_grad()
    def put(self, tensors: Mapping[str, Tensor]) -> None:
        """Set what `tensors` gave."""
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[name])

    @contextmanager
    def _off(self) -> Iterator[None]:
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)


def own_backbone(source: Any, device: Any = None, dtype: Any = None) -> Adaptable:
    """A backbone that may be changed: loaded anew, or with a copy of a lent one's denoiser.

    Args:
        source: what `load_backbone` takes, a `BackboneSpec` or a loaded backbone.
        device: for a source that is loaded here.
        dtype: likewise.

    Raises:
        BackboneError: it is no U-Net model, or LoRA weights are in it already.
        ValueError: device or dtype for a model that is loaded or specified already.
    """
    if (isinstance(source, BackboneSpec) or is_backbone(source)) and (device, dtype) != (None,) * 2:
        raise ValueError(
            "device and dtype belong to loading, and this backbone is loaded or specified already, "
            f"got device={device}, dtype={dtype}; give them to BackboneSpec or load_backbone.")
    if is_backbone(source):
        return _with_own_denoiser(_checked(source))
    spec = source if isinstance(source, BackboneSpec) else BackboneSpec(source, device, dtype)
    backbone = _checked(spec.load())
    return backbone if spec.is_named else _with_own_denoiser(backbone)


def _checked(backbone: Backbone) -> Adaptable:
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(backbone, PixelBackbone | LatentBackbone):
        raise BackboneError(
            f"{backbone.name} ({type(backbone).__name__}) cannot be adapted: only models with a "
            "U-Net can, such as Stable Diffusion 1.x, 2.x and XL.")
    if backbone.lora is not None or any(
        isinstance(part, BaseTunerLayer) for part in backbone.unet.modules()
    ):
        raise BackboneError(
            f"{backbone.name} has LoRA weights already ({backbone.lora or 'loaded by diffusers'}); "
            "adapt the model without them.")
    return backbone


def _with_own_denoiser(backbone: Adaptable) -> Adaptable:
    """The same model with a copy of its denoiser; what is not changed is shared."""
    unet = backbone.unet
    other: Any = type(unet).from_config(unet.config)
    # nn.Module's own method: diffusers' one warns at every change of dtype
    nn.Module.to(other, unet.device, unet.dtype)
    other.load_state_dict(unet.state_dict())
    pipeline = copy.copy(backbone.pipeline)
    pipeline.unet = other
    conditioning = backbone.conditioning
    null_class = conditioning.null_class if isinstance(conditioning, ClassConditioning) else None
    if isinstance(backbone, LatentBackbone):
        return LatentBackbone(pipeline, backbone.name, backbone.image_size,
                              backbone.class_names, null_class, backbone.decode_batch)
    return PixelBackbone(pipeline, backbone.name, backbone.class_names, null_class)


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
