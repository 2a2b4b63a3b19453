"""The final layer of any classifier: finding it, and reading what enters it in a forward pass."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

FinalLayer = nn.Linear | nn.Conv2d

# Where torchvision, timm and transformers keep it, by itself or in a block.
_NAMES = ("fc", "classifier", "head", "heads")


class FeatureReader:
    """Finds the final layer of a classifier, and reads what enters it through a hook.

    The hook stays until `detach`, since torch ignores a hook that is added after the first
    ``torch.compile`` call. It does nothing but in `read`, so exports of the plain path hold no
    trace of it.

    Args:
        model, head: as in `find_head`.

    Attributes:
        name: of the layer.
        layer: the layer itself.
        feature_dim: number of features that enter it, D.
        num_classes: number of its outputs.
    """

    def __init__(self, model: nn.Module, head: str | nn.Module | None = None) -> None:
        self.name, self.layer = find_head(model, head)
        self.num_classes, self.feature_dim = self.layer.weight.shape[:2]
        self._listening = False
        self._features: Tensor | None = None
        self._handle: RemovableHandle | None = self.layer.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._listening:
            self._features = args[0]

    def detach(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def read(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Any]:
        """The layer's input, (N, D), averaged over positions, and what ``model`` returns."""
        if self._handle is None:
            self._handle = self.layer.register_forward_pre_hook(self)
        self._listening = True
        try:
            output, features = model(images), self._features
        finally:
            self._listening, self._features = False, None
        if features is None:
            raise RuntimeError(
                f'the layer "{self.name}" did not run, or runs in a graph that was compiled '
                "before: compile the model later, or name another layer, head=\"…\".")
        if features.ndim > 2:
            # A linear layer gives the same logits for the mean of the features as the mean of its
            # logits over the positions.
            features = (features.flatten(2).mean(2) if isinstance(self.layer, nn.Conv2d)
                        else features.flatten(1, -2).mean(1))
        return features, output


def find_head(
    model: nn.Module, head: str | nn.Module | None = None
) -> tuple[str, FinalLayer]:
    """The name of the final classification layer of ``model``, and the layer itself.

    The first of these that gives an answer decides: the caller's ``head``; timm's
    ``get_classifier()`` (the first of a distilled model's two); the attribute ``fc``,
    ``classifier``, ``head`` or ``heads``, or the last layer in it; the linear layer that was
    registered last, unless an earlier one has as many outputs.

    Raises:
        ValueError: there is no such layer; the message lists the candidates.
    """
    candidates = _candidates(model)
    if head is not None:
        for pair in candidates:
            if head in pair:
                return pair
        shown = f'"{head}"' if isinstance(head, str) else f"a {type(head).__name__}"
        raise ValueError("head must be a Linear or 1×1 Conv2d layer of the model, or its name, got "
                         f"{shown}. " + describe_candidates(model))
    get_classifier: Any = getattr(model, "get_classifier", None)
    made = get_classifier() if callable(get_classifier) else None
    places = [made[0] if isinstance(made, (tuple, list)) else made]
    for place in places + [getattr(model, name, None) for name in _NAMES]:
        inside = set(place.modules()) if isinstance(place, nn.Module) else set()
        found = [pair for pair in candidates if pair[1] in inside]
        if found:
            return found[-1]
    linear = [pair for pair in candidates if isinstance(pair[1], nn.Linear)]
    outputs = [len(layer.weight) for _, layer in linear]
    if outputs and outputs.count(outputs[-1]) == 1:
        return linear[-1]
    raise ValueError(f"the final classification layer of {type(model).__name__} was not found: "
                     'name it, head="…". ' + describe_candidates(model))


def describe_candidates(model: nn.Module) -> str:
    """One sentence with the last ten layers of ``model`` that could be the final one."""
    lines = [f'"{name}" ({type(layer).__name__} {layer.weight.shape[1]} -> {len(layer.weight)})'
             for name, layer in _candidates(model)]
    if not lines:
        return "It has no Linear and no 1×1 Conv2d layer; let it end in one."
    return f"Candidates, last {min(len(lines), 10)} of {len(lines)}: " + ", ".join(lines[-10:])


def main_logits(output: Any) -> Tensor:
    """The class logits, (N, C), in the output of any classifier.

    A tensor itself; ``logits`` of a named tuple, data class or dictionary (torchvision's models
    with auxiliary logits in training, transformers' models); the first member of a plain tuple.

    Raises:
        TypeError: there are none.
        ValueError: one logit alone.
    """
    if isinstance(output, dict) and "logits" in output:
        output = output["logits"]
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 2:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise TypeError(
            "model must return class logits of shape (N, C), or a tuple or named output that "
            f"holds them as its first member or as .logits, got {found}.")
    check_classes(output.shape[1], "the classifier")
    return output


def check_classes(count: int, what: str) -> None:
    """Raise ``ValueError`` for a classifier of a single logit."""
    if count < 2:
        raise ValueError(
            f"{what} must have a logit for each class, at least two, got {count}. Softmax of one "
            "logit is 1 for every image: for two classes end in nn.Linear(features, 2), and train "
            "with cross-entropy.")


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every module has its own earlier mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _candidates(model: nn.Module) -> list[tuple[str, FinalLayer]]:
    return [
        (name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and {*module.kernel_size, module.groups} == {1})
    ]
