"""From a label or an image's name to what the model is conditioned on."""

import warnings
from collections.abc import Callable, Sequence
from string import Formatter
from typing import Any, Literal, Protocol

from dreamda_aug.arguments import shown
from dreamda_aug.inputs.captions import Captions
from dreamda_aug.inputs.labels import (
    check_names,
    class_number,
    number_labels,
    plain_label,
    plain_name,
)
from dreamda_aug.inputs.seed_images import SeedImages

# The authors' template, with "a" or "an" as the class name needs it.
DEFAULT_PROMPT = "A photo of {article} {class_name}."


def class_prompt(template: str, class_name: str) -> str:
    """A prompt for a class.

    Args:
        template: text in which ``{class_name}`` and ``{article}`` ("a" or "an") are filled in.
        class_name: underscores become spaces.
    """
    name = class_name.replace("_", " ").strip()
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return template.format(class_name=name, article=article)


def template_fields(template: str) -> set[str]:
    """The names in braces; raises ValueError where one is none that `class_prompt` fills in."""
    found = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    if unknown := found - {"class_name", "article"}:
        raise ValueError(
            f"prompt may use {{class_name}} and {{article}}, got {template!r} with "
            f"{', '.join(sorted(unknown))}."
        )
    return found


class Conditioned(Protocol):
    """A model that is conditioned on a text, on a class, or on nothing."""

    @property
    def name(self) -> str: ...

    @property
    def condition_kind(self) -> Literal["text", "class", "none"]: ...

    @property
    def class_names(self) -> list[str] | None: ...

    @property
    def guidable(self) -> bool: ...


class Conditioner:
    """Turns labels, or the names of images, into conditions.

    Args:
        class_names: the name of each class in label order, or None where labels are names already
            or are not needed.
        prompt: a template, see `class_prompt`, or a function from a label to a prompt.
        captions: one prompt for each image, instead of ``prompt``.

    Raises:
        ValueError: the template has other fields, or a name is not UTF-8.
    """

    def __init__(
        self,
        class_names: Sequence[str] | None,
        prompt: str | Callable[[Any], str],
        captions: Captions | None = None,
    ):
        if captions is not None and prompt != DEFAULT_PROMPT:
            raise ValueError(f"captions take the place of the prompt, got prompt={prompt!r} too.")
        if isinstance(class_names, str):
            raise TypeError(f"class_names must be a list of names, got the string {class_names!r}.")
        self.class_names = list(class_names) if class_names is not None else None
        check_names(self.class_names or ())
        self.prompt, self.captions = prompt, captions
        self._unknown_classes: set[str] = set()
        self.fields = template_fields(prompt) if isinstance(prompt, str) else {"label"}

    def needs_label(self, model: Conditioned) -> bool:
        """Whether images can be made only with their labels."""
        kinds = ("class", "text") if self.fields else ("class",)
        return self.captions is None and model.condition_kind in kinds

    def condition(
        self, label: Any, model: Conditioned, image: str | int | None = None
    ) -> str | int | None:
        """What the model is conditioned on: a prompt, a class, or None.

        Args:
            label: the image's label: a class number, see `class_number`, or a class name.
            model: the diffusion model.
            image: the image's file name or index; needed for captions only.

        Raises:
            ValueError: the label is no class, or has no name; or there is no caption.
        """
        if self.captions is not None:
            if model.condition_kind != "text":
                kind = {"class": "class-conditional"}.get(model.condition_kind, "unconditional")
                raise ValueError(
                    f"captions are for text-to-image models; {model.name} is {kind}."
                )
            if image is None:
                raise ValueError(
                    "captions go by file name, and the image has none: use AugmentedDataset or "
                    "expand, or a labels_getter that returns the file name."
                )
            return self.captions.text(image)
        if model.condition_kind == "text":
            return self._prompt_for(label)
        if model.condition_kind == "none" or label is None and model.guidable:
            return None  # for a model of classes: the null class
        number, name = self._class_of(label)
        known = model.class_names
        if name is None or not known:
            return class_number(number, len(known) if known else None)
        same = _known_as(name, known)
        if same is None and model.guidable:
            self._warn_of_unknown_classes(name, model)
            return None
        return same or name

    def _warn_of_unknown_classes(self, name: str, model: Conditioned) -> None:
        """Warn once of this class and of all others that the model has no class for."""
        if name in self._unknown_classes:
            return  # asked for each image: classes are compared once
        known = model.class_names or []
        unknown = [each for each in dict.fromkeys((name, *(self.class_names or ())))
                   if each not in self._unknown_classes and _known_as(each, known) is None]
        self._unknown_classes.update(unknown)
        warnings.warn(
            f"{model.name} does not have the classes {shown(unknown)}, and makes their images "
            f"without a class; it has {shown(known)}. Rename your classes with class_names, adapt "
            "the model to your images (dreamda adapt), or use another one.", stacklevel=3)

    def of_images(
        self, images: SeedImages, model: Conditioned
    ) -> Callable[[int], str | int | None]:
        """A function from the number of an image to its condition; raises as `condition` does."""
        labels, names = images.labels, None
        if self.captions is not None:
            names = self.captions.images(images.file_names, len(images))
        return lambda index: self.condition(
            labels[index] if labels else None, model, None if names is None else names[index])

    def known_prompts(self) -> list[str] | None:
        """Every prompt that `condition` can give, or None where a function or labels decide."""
        if self.captions is not None:
            return self.captions.texts
        if not isinstance(self.prompt, str):
            return None
        if not self.fields:
            return [self.prompt]
        if self.class_names is None:
            return None
        return [class_prompt(self.prompt, name) for name in self.class_names]

    def _prompt_for(self, label: Any) -> str:
        if not isinstance(self.prompt, str):
            return self.prompt(plain_label(label))
        if not self.fields:
            return self.prompt
        number, name = self._class_of(label)
        if name is None:
            raise ValueError(
                f"class_names must be given to put label {class_number(number)} into a prompt, or "
                "a prompt without {class_name}."
            )
        return class_prompt(self.prompt, name)

    def _class_of(self, label: Any) -> tuple[Any, str | None]:
        """Number and name of a class; the label itself for the first where no names are given."""
        if self.class_names is not None:
            number = number_labels([label], self.class_names)[0][0]
            return number, self.class_names[number]
        name = plain_label(label)
        return label, name if isinstance(name, str) else None


def _known_as(name: str, known: Sequence[str]) -> str | None:
    """The one of the known names that this name is, or None."""
    if name in known:
        return name
    found = [each for each in known if plain_name(each) == plain_name(name)]
    return found[0] if len(found) == 1 else None
