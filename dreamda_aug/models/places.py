"""Where a transformer can be perturbed, and which transformers cannot."""

import inspect
from collections import Counter
from typing import Any

from torch import nn

from dreamda_aug.errors import ModelError
from dreamda_aug.models.base import check_ready
from dreamda_aug.models.codec import ImageCodec
from dreamda_aug.models.families import Family
from dreamda_aug.models.known_families import FAMILIES


def family_of(pipeline: Any) -> Family:
    """The family of a pipeline's transformer.

    Raises:
        ModelError: it is none of the known ones; says which blocks were found.
    """
    transformer = pipeline.transformer
    kind = type(transformer).__name__
    if kind in FAMILIES:
        return FAMILIES[kind]
    raise ModelError(
        f"{kind} of {type(pipeline).__name__} is not a transformer whose blocks and inputs are "
        f"understood; found {_found(transformer)}. Use one of {', '.join(sorted(FAMILIES))}, a "
        "U-Net such as Stable Diffusion 1.x, 2.x or XL, or describe it: "
        "dreamda_aug.models.transformer.TransformerModel(pipeline, family=Family(...))."
    )


def block_lists(
    transformer: Any, family: Family
) -> tuple[list[list[nn.Module]], list[list[nn.Module]]]:
    """The lists of blocks before those that can be hooked, and those.

    Raises:
        ModelError: the transformer has no such blocks.
    """
    def read(names: tuple[str, ...]) -> list[list[nn.Module]]:
        return [list(getattr(transformer, name, ())) for name in names]

    lists = read(family.blocks)
    if not any(lists):
        raise ModelError(
            f"{type(transformer).__name__} has no blocks in {' and '.join(family.blocks)}, where "
            f"the perturbation enters; found {_found(transformer)}."
        )
    return read(family.before), lists


def hooked_block(
    transformer: Any, family: Family, block_index: int | None
) -> tuple[int, int, int]:
    """Which block is hooked.

    Args:
        transformer: the transformer.
        family: its family.
        block_index: number of the block among all that can be hooked; None: the middle one.

    Returns:
        Number of the block, number of its list, and its place there.

    Raises:
        ValueError: there is no such block, or its output also feeds a long skip.
    """
    _, lists = block_lists(transformer, family)
    count = sum(map(len, lists))
    # the blocks in the first half, but for the last one, also feed a skip to the second half
    first = max(count // 2 - 1, 0) if family.has_long_skips else 0
    number = count // 2 if block_index is None else block_index
    if isinstance(number, bool) or not isinstance(number, int) or not first <= number < count:
        lengths = ", then ".join(
            f"{len(each)} {name}" for name, each in zip(family.blocks, lists, strict=True) if each)
        skips = ", and those before it also feed skips" if first else ""
        raise ValueError(
            f"block_index must be a whole number from {first} to {count - 1} for "
            f"{type(transformer).__name__}, which has {count} blocks ({lengths}){skips}; got "
            f"{block_index!r}."
        )
    index = number
    for stage, each in enumerate(lists):
        if index < len(each):
            return number, stage, index
        index -= len(each)
    raise AssertionError("the block was counted")


def check_transformer(pipeline: Any, codec: ImageCodec, patch: int) -> None:
    """Refuse a transformer that needs more than noisy latents and a prompt or class.

    Args:
        pipeline: the pipeline.
        codec: its VAE.
        patch: how many latents of a side are packed into one token before the transformer.

    Raises:
        ModelError: says why, and what to do.
    """
    transformer = pipeline.transformer
    kind, channels = type(transformer).__name__, codec.latent_channels * patch**2
    given = transformer.config.in_channels
    if given != channels:
        raise ModelError(
            f"{kind} takes {given} channels, and the VAE's latents have {channels}: a model for "
            "inpainting, control or editing, which needs an image beside the noise. Use the "
            "text-to-image model."
        )
    encode = getattr(pipeline, "encode_prompt", None)
    if encode is not None and any(
        "image" in name and parameter.default is inspect.Parameter.empty
        for name, parameter in inspect.signature(encode).parameters.items()
    ):
        raise ModelError(
            f"{type(pipeline).__name__} needs an image beside the prompt: an editing model. Use "
            "the text-to-image model of its family."
        )
    check_ready(transformer, any(getattr(transformer, name, None) is not None
                                 for name in ("image_proj", "encoder_hid_proj")))
    check_uncached(transformer)


def check_uncached(transformer: Any) -> None:
    """Refuse a transformer that skips blocks by itself.

    Raises:
        ModelError: it does.
    """
    if getattr(transformer, "is_cache_enabled", False):
        raise ModelError(
            f"{type(transformer).__name__} has a cache enabled, which skips blocks and would skip "
            "the perturbed one; switch it off with transformer.disable_cache()."
        )


def _found(transformer: nn.Module) -> str:
    """The lists of equal blocks of a model, in words."""
    lists = []
    for name, part in transformer.named_children():
        if isinstance(part, nn.ModuleList) and len(part) > 1:
            kind, count = Counter(type(each).__name__ for each in part).most_common(1)[0]
            lists.append(f"{name} ({count} × {kind})")
    return ", ".join(lists) or "no list of blocks"
