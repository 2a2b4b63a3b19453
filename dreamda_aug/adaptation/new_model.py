"""A new pixel model in training, with the moving average of its weights, and its samples."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dreamda_aug.adaptation.objective import Noised
from dreamda_aug.method.seeding import SOURCE, derive_seed, seeded_normal
from dreamda_aug.method.solvers import Prediction, Predictions, Solver
from dreamda_aug.models.unet import PixelModel, Width, new_pixel_pipeline

Tensors = list[Tensor] | tuple[Tensor, ...]

_EMA_DECAY = 0.999
_SHEET_STEPS, _SHEET_GUIDANCE = 25, 2.0


class NewModel:
    """A pixel model that begins untrained; ``average`` is the one that a user gets.

    ``classes`` is how many it is conditioned on, 0 for an unconditional model.
    """

    def __init__(
        self, image_size: int, channels: int, classes: int, width: Width, device: torch.device,
        rng_seed: int,
    ):
        with seeded(derive_seed(rng_seed, "weights"), device):
            pipeline = new_pixel_pipeline(image_size, channels, classes, width).to(device)
        self._unet = pipeline.unet.requires_grad_(True)
        self._averaged = AveragedModel(self._unet, multi_avg_fn=_moving_average)
        average = type(pipeline)(self._averaged.module.eval(), pipeline.scheduler)
        self._null_class = classes or None
        self._model, self.average = (
            PixelModel(each, "the new model", null_class=self._null_class)
            for each in (pipeline, average))
        for model in (self._model, self.average):
            model.channels_last()
        self._unet.train()
        self.parameters: dict[str, nn.Parameter] = dict(self._unet.named_parameters())
        self.can_drop, self.device, self.dtype = classes > 0, device, self._model.dtype

    def losses(self, noised: Noised, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The error, which is what is minimized."""
        output = self._model.denoise(noised.x_t, noised.t, self._condition(labels))
        error = (output - noised.target).square().mean()
        return error, error

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The averaged model's output, (B, C, H, W)."""
        return self.average.denoise(x_t, t, self._condition(labels))

    def after_step(self) -> None:
        """Move the average."""
        self._averaged.update_parameters(self._unet)

    def kept(self) -> dict[str, Tensor]:
        """A copy of the averaged weights, on the CPU."""
        return _copied(self._averaged.module, "")

    def set_kept(self, tensors: Mapping[str, Tensor]) -> None:
        """Set what `kept` returned."""
        self._averaged.module.load_state_dict(tensors)

    def state(self) -> dict[str, Tensor]:
        """A copy of the weights in training and of their average, on the CPU."""
        return {**_copied(self._unet, "raw."), **_copied(self._averaged.module, "average."),
                "averaged": self._averaged.n_averaged.cpu().clone()}

    def set_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Set what `state` returned."""
        for module, prefix in ((self._unet, "raw."), (self._averaged.module, "average.")):
            module.load_state_dict({name.removeprefix(prefix): value
                                    for name, value in tensors.items() if name.startswith(prefix)})
        self._averaged.n_averaged.copy_(tensors["averaged"])

    @torch.no_grad()
    def samples(self, labels: Sequence[int | None]) -> Tensor:
        """Guided samples of the averaged model, one for each label, (B, C, H, W) in [0, 1]."""
        model, schedule = self.average, self.average.schedule(_SHEET_STEPS, 1.0)
        rows, null = model.embed(labels), model.embed([None] * len(labels))

        def denoise(x: Tensor, level: int, call: int) -> Predictions:
            output = model.predict(x, schedule.timesteps[level], rows)
            if self.can_drop:
                free = model.predict(x, schedule.timesteps[level], null)
                output = free + _SHEET_GUIDANCE * (output - free)
            prediction = Prediction(*schedule.predictions(output, x, level))
            return Predictions(prediction, prediction)

        seeds = torch.arange(len(labels), device=self.device)
        x = seeded_normal(seeds, 0, SOURCE, (model.channels, *model.image_size))
        solver = Solver("ddim", schedule, 0.0)
        for step in range(len(schedule)):
            x, _ = solver.step(x, step, denoise)
        return model.decode(x).cpu()

    def _condition(self, labels: Tensor) -> dict[str, Tensor]:
        if self._null_class is None:
            return {}
        return {"class_labels": torch.where(labels < 0, self._null_class, labels).to(self.device)}


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generator for a while: first weights and dropout draw from no other."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _moving_average(averages: Tensors, values: Tensors, updates: Tensor | int) -> None:
    """Exponential moving average whose decay rises to its final value.

    Source: the warm-up of the decay is that of diffusers' ``EMAModel``, with power 3/4.
    """
    decay = min(_EMA_DECAY, 1 - (1 + int(updates)) ** -0.75)
    get_ema_multi_avg_fn(decay)(averages, values, updates)


def _copied(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value.detach().to("cpu", copy=True).contiguous()
            for name, value in module.state_dict().items()}
