"""A learned token for each class of a text-to-image model."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dreamda_aug.models.adapted import ENCODERS, Conditions, add_tokens
from dreamda_aug.models.conditioning import TextConditioning, put_tokens
from dreamda_aug.models.unet import UNetModel


class LearnedTokens:
    """Prompts in which a learned token stands in the place of the class name.

    A token begins as the mean of the tokens that spell the class name.

    Args:
        model: a text model of the caller's own; text encoders and tokenizers become copies.
        classes: names of the user's classes, in label order.
        prompts: the plain prompt of each class.

    Raises:
        ValueError: a prompt does not hold its class name once.

    Source: Gal et al. 2022, arXiv:2208.01618.
    """

    def __init__(self, model: UNetModel, classes: Sequence[str], prompts: Sequence[str]):
        assert isinstance(model.conditioning, TextConditioning)
        self._conditioning, pipeline = model.conditioning, model.pipeline
        self.can_drop = model.guidable
        self._prompts, self._classes = list(prompts), list(classes)
        self.started_from = {name: "the words of its name" for name in classes}
        self._tokens = {name: f"<dreamda-{number}>" for number, name in enumerate(classes)}
        self.parameters: dict[str, nn.Parameter] = {}
        self._starts: dict[str, Tensor] = {}
        for name, prompt in zip(classes, prompts, strict=True):
            if put_tokens(prompt, self._tokens).count("<dreamda-") != 1:
                raise ValueError(
                    f"the prompt must hold the class name once, as words of its own, so that a "
                    f"learned token can take its place, got {prompt!r} for class {name!r}; use "
                    "tokens='prompt', or another name or prompt.")
        # before there are tokens: what the prior knows
        plain = model.embed([*prompts, None])
        self._plain = {name: value.clone() for name, value in plain.items()}
        starts: dict[str, Tensor] = {}
        for tokenizer_name, encoder_name in ENCODERS:
            if getattr(pipeline, encoder_name, None) is None:
                continue
            for part in (tokenizer_name, encoder_name):
                setattr(pipeline, part, copy.deepcopy(getattr(pipeline, part)))
            encoder = getattr(pipeline, encoder_name).requires_grad_(False)
            table = encoder.get_input_embeddings().weight.detach()
            tokenizer = getattr(pipeline, tokenizer_name)
            for name, token in self._tokens.items():
                spelled = tokenizer(name.replace("_", " "), add_special_tokens=False).input_ids
                starts[f"{encoder_name}/{token}"] = table[spelled].mean(0)
        add_tokens(pipeline, starts)
        self._conditioning.tokens = dict(self._tokens)
        for tokenizer_name, encoder_name in ENCODERS:
            if getattr(pipeline, encoder_name, None) is not None:
                self._hook(getattr(pipeline, tokenizer_name), getattr(pipeline, encoder_name),
                           encoder_name)

    def rows(self, labels: Tensor) -> dict[str, Tensor]:
        chosen = labels.tolist()
        encoded = {label: self._encode(label) for label in set(chosen)}
        return {name: torch.cat([encoded[label][name] for label in chosen])
                for name in self._plain}

    def prior(self, labels: Tensor) -> dict[str, Tensor]:
        return {name: values[labels.to(values.device)] for name, values in self._plain.items()}

    @contextmanager
    def off(self) -> Iterator[None]:
        yield  # the prompts of before have been embedded already

    def found(self) -> Conditions:
        return Conditions(tokens=self._tokens)

    def files(self) -> dict[str, Tensor]:
        return {f"{place}/{token}": (self._starts[place] + delta.detach())[number].cpu()
                for place, delta in self.parameters.items()
                for number, token in enumerate(self._tokens.values())}

    def _encode(self, label: int) -> dict[str, Tensor]:
        if label < 0:
            return {name: values[-1:] for name, values in self._plain.items()}
        return self._conditioning.encode(self._prompts[label])

    def _hook(self, tokenizer: Any, encoder: Any, place: str) -> None:
        """Add the trained part to the embeddings of the new tokens."""
        numbers = tokenizer.convert_tokens_to_ids(list(self._tokens.values()))
        table = encoder.get_input_embeddings()
        first = min(numbers)
        assert numbers == list(range(first, first + len(numbers)))
        start = self._starts[place] = table.weight.detach()[numbers].float()
        delta = nn.Parameter(torch.zeros_like(start))
        self.parameters[place] = delta
        table.register_forward_hook(_adder(delta, first))


def _adder(delta: nn.Parameter, first: int) -> Callable[..., Tensor]:
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        places = inputs[0] - first + 1
        # row 0 is that of every other token
        table = F.pad(delta, (0, 0, 1, 0))
        return output + F.embedding(places.clamp(0, len(delta)), table).to(output.dtype)

    return add
