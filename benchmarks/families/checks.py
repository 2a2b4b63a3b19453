"""What must hold for every family, as numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.families.own_pipelines import LABEL, OWN, PROMPT, Setting
from benchmarks.families.pipelines import SIDE
from dreamda_aug.generation.sampling import Run
from dreamda_aug.method.seeding import SOURCE, seeded_normal
from dreamda_aug.method.settings import ResolvedSettings, resolve_settings
from dreamda_aug.models import DiffusionModel
from dreamda_aug.models.conditioning import Condition
from dreamda_aug.models.transformer import TransformerModel

STEPS = 4


def settings(**dials: Any) -> ResolvedSettings:
    """The paper's preset with few steps; asymmetric rule, eta 1, the scheduler's own steps."""
    common: dict[str, Any] = {"steps": STEPS, "strength": 1.0, "noise_scale": 2.0}
    return resolve_settings("paper", **common | dials).with_dials()


def told(model: DiffusionModel, number: int = 0) -> Condition:
    """A condition other than none; prompts of different numbers differ in length."""
    return PROMPT + " sat" * number if model.condition_kind == "text" else LABEL + number


def images(count: int) -> Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def run_of(model: DiffusionModel, dials: ResolvedSettings) -> Run:
    """A run of the model with these dials."""
    schedule = model.schedule(dials.steps, dials.strength, dials.timestep_spacing)
    return Run(model, dials, schedule)


def latents(
    model: DiffusionModel, dials: ResolvedSettings, conditions: Sequence[Condition],
    seeds: Sequence[int] | None = None, source: Condition = None,
) -> Tensor:
    """Clean latents of one sample for each of the first images, (count, C, H, W)."""
    count = len(conditions)
    run = run_of(model, dials)
    # float32, so that nothing but the arithmetic is compared
    made = run.invert(images(7)[:count], [source] * count, list(range(count)), torch.float32)
    with torch.no_grad():
        return run.sample(made, conditions, seeds or list(range(10, 10 + count)))


def difference_from_own_pipeline(name: str, model: DiffusionModel, setting: Setting) -> float:
    """Largest difference of any pixel, replay 0 and no noise at the hook."""
    own, seed = OWN[name], 5
    dials = settings(replay=0.0, noise_scale=0.0, eta=0.0, **setting._asdict())
    ours = model.decode(latents(model, dials, [told(model)], [seed]))
    x_0 = model.encode(images(7)[:1])
    start = seeded_normal(torch.tensor([seed]), 0, SOURCE, tuple(x_0.shape[1:]))
    if not own.from_image:
        # the little of the image that some schedules leave at their noisiest level, too
        start = model.schedule(setting.steps, 1.0, "scheduler").add_noise(x_0, start, 0)
    theirs = own(model.pipeline, images(7)[:1], start, setting)
    # clipped pixels are equal whatever was computed
    assert float(((theirs > 0) & (theirs < 1)).float().mean()) > 0.5, "most pixels are clipped"
    return float((ours - theirs).abs().max())


def replay_error(model: DiffusionModel, guidance_scale: float) -> float:
    """Largest difference of any latent after a replay without noise, equal conditions."""
    condition = told(model) if guidance_scale == 1 else None
    dials = settings(noise_scale=0.0, guidance_scale=guidance_scale)
    made = latents(model, dials, [condition] * 2, source=condition)
    return float((made - model.encode(images(7)[:2])).abs().max())


def moved(model: DiffusionModel, noise_scale: float) -> float:
    """Root mean square by which noise at the hook moves latents from the encoded image."""
    dials = settings(noise_scale=noise_scale, guidance_scale=1.0)
    made = latents(model, dials, [told(model)] * 2, source=told(model))
    return float((made - model.encode(images(7)[:2])).square().mean().sqrt())


def rows_per_step(model: TransformerModel, count: int = 3) -> tuple[float, float]:
    """Rows per sample and step before and behind the hook, guided, counted at the first and last
    block, and checked against the number of their calls: one a step."""
    # without the shared first step, every step is alike
    dials = settings(guidance_scale=4.0)
    blocks = [block for each in (*model._before, *model._lists) for block in each]
    source = told(model)
    run, seeds = run_of(model, dials), list(range(count))
    made = run.invert(images(7)[:count], [source] * count, seeds, torch.float32)
    with _counted(blocks[0]) as first, _counted(blocks[-1]) as last, torch.no_grad():
        run.sample(made, [source] * count, seeds, share_first_step=False)
    assert len(first) == len(last) == len(run.schedule), (first, last)
    return (sum(first) / count / len(run.schedule), sum(last) / count / len(run.schedule))


def difference_alone_and_in_a_batch(model: DiffusionModel) -> float:
    """Largest difference of any latent of a sample alone and among seven."""
    dials = settings(guidance_scale=4.0)
    conditions = [told(model, number) for number in range(7)]
    together = latents(model, dials, conditions)
    alone = latents(model, dials, conditions[:1])
    return float((together[:1] - alone).abs().max())


@contextmanager
def _counted(block: torch.nn.Module) -> Iterator[list[int]]:
    """Within it, the rows of each time that a block is computed; when it is recalled it is not."""
    rows: list[int] = []
    inner = next(part for name, part in block.named_children() if name.startswith("att"))
    hook = inner.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(_rows(args, kwargs)), with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return len(args[0] if args else kwargs["hidden_states"])


def options(name: str) -> dict[str, Any]:
    """How a family's model is loaded, beside its size."""
    # what FluxPipeline gives by default; its image-to-image pipeline has another default
    return {"embedded_guidance": 3.5} if name == "flux" else {}
