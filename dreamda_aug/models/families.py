"""What tells one family of diffusion transformers from another: a table.

A family is how a transformer is called: what it takes of the pipeline's embedded prompt, how
latents become tokens, what it calls time and which way its output points. All of it is read off
diffusers' own pipelines.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamda_aug.models.prompts import PipelinePrompts

Inputs = dict[str, Any]
# What a pipeline gives its scheduler as ``mu``: (pipeline, latents' shape, tokens, steps) -> mu.
Shift = Callable[[Any, tuple[int, ...], int, int], float]


def no_text(inputs: Inputs) -> int:
    """Image and text tokens are apart, or the image's come first."""
    return 0


@dataclass(frozen=True)
class Family:
    """How the transformers of one class are called.

    Attributes:
        transformer: name of the class.
        denoise: the call: (transformer, x_t (R, C, H, W), t (R,), inputs with R rows) to the
            prediction, (R, C or 2·C, H, W), of noise, velocity or image as its scheduler
            says.
        embed: what a prompt becomes: inputs for ``denoise`` with one row each, the same shapes for
            every prompt. None: the model takes class labels.
        blocks: lists of blocks, in the order in which they run, that can be hooked.
        before: lists that run before those, and are not hooked.
        text_tokens: how many text tokens stand before the image's where both are in one sequence:
            a number, or one for each row.
        patch: how many latents of a side make a token; None: the transformer's ``patch_size``.
        packed: whether the transformer is given tokens of patch × patch latents.
        has_long_skips: whether outputs of blocks are read by later ones than the next.
        even_sigmas: whether the pipeline gives its scheduler noise levels from 1 to 1 / steps.
        shift: what it gives as ``mu`` where the scheduler shifts dynamically.
        guidable: whether it has an unconditional branch, unless the configuration says otherwise.
        square: whether its images must be square.
    """

    transformer: str
    denoise: Callable[[Any, Tensor, Tensor, Inputs], Tensor]
    embed: Callable[[PipelinePrompts, str], dict[str, Tensor]] | None
    blocks: tuple[str, ...] = ("transformer_blocks",)
    before: tuple[str, ...] = ()
    text_tokens: Callable[[Inputs], int | Tensor] = no_text
    patch: int | None = None
    packed: bool = False
    has_long_skips: bool = False
    even_sigmas: bool = False
    shift: Shift | None = None
    guidable: bool = True
    square: bool = False


def packed(x: Tensor) -> Tensor:
    """Latents (R, C, H, W) to tokens of 2×2 latents, (R, H·W/4, 4·C)."""
    return F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, x: Tensor) -> Tensor:
    """Tokens of 2×2 latents back to the shape of x."""
    grid = tokens.transpose(1, 2).unflatten(2, (x.shape[2] // 2, x.shape[3] // 2))
    return F.pixel_shuffle(grid, 2)


def places(*counts: int, like: Tensor) -> Tensor:
    """Coordinates of every place of a grid, in order, (product of counts, number of counts)."""
    return torch.cartesian_prod(*(torch.arange(n, device=like.device) for n in counts))


def by_tokens(pipeline: Any, shape: tuple[int, ...], tokens: int, steps: int) -> float:
    """``mu`` that grows with the number of image tokens, as most pipelines compute it."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = pipeline.scheduler.config
    return float(calculate_shift(
        tokens, config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5), config.get("max_shift", 1.15)))


def by_channels(pipeline: Any, shape: tuple[int, ...], tokens: int, steps: int) -> float:
    """The same from the latents' channels, as Lumina 2's pipeline does."""
    return by_tokens(pipeline, shape, shape[0], steps)


def by_tokens_and_steps(pipeline: Any, shape: tuple[int, ...], tokens: int, steps: int) -> float:
    """``mu`` as FLUX.2's pipelines compute it."""
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    return float(compute_empirical_mu(tokens, steps))


def masked(prompts: PipelinePrompts, prompt: str) -> dict[str, Tensor]:
    """Embeddings and mask of pipelines that give both for the prompt, then for no prompt."""
    parts = prompts.encode(prompt, do_classifier_free_guidance=not prompt)
    embeddings, mask = parts[:2] if prompt else parts[2:4]
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}


def filled(embeddings: Tensor, longest: int) -> dict[str, Tensor]:
    """Embeddings (N, D) as one row of so many tokens as any prompt may have, and their mask."""
    length = min(len(embeddings), longest)
    room = embeddings.new_zeros(1, longest, embeddings.shape[1])
    room[0, :length] = embeddings[:length]
    mask = torch.arange(longest, device=room.device)[None] < length
    return {"encoder_hidden_states": room, "encoder_attention_mask": mask}
