"""From a label or an image's file name to what the model is conditioned on."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any, Literal, Protocol

from dreamda_aug.arguments import checked, shown
from dreamda_aug.inputs.listing import read_table
from dreamda_aug.inputs.samples import (
    SURROGATES,
    check_names,
    class_number,
    match_class,
    number_labels,
    plain_label,
)
from dreamda_aug.inputs.seed_images import SeedImages

# The fields of the authors' caption files, and of Hugging Face's metadata files.
_NAME, _TEXT = "file_name", "text"
# The authors' template, with "a" or "an" as the class name needs it.
DEFAULT_PROMPT = "A photo of {article} {class_name}."


class Captions:
    """One text for each image, found by its file name or by its place in the dataset.

    A file name fits an image whose path ends with it, whole parts of the path compared:
    ``cat/0.png`` fits ``/data/train/cat/0.png``.

    Args:
        source: a ``.jsonl`` file with the fields ``file_name`` and ``text``, as the authors' code
            reads it; a ``.csv`` file with those columns; a mapping from file name to text; a
            sequence with one text per image of the dataset, in order; or a function from an
            image's file name to its text (from its index, where a dataset keeps no file names).

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: the file is damaged.
        ValueError: it holds something else, or a file name twice.
    """

    @checked
    def __init__(
        self,
        source: str | Path | Mapping[str, str] | Sequence[str] | Callable[[Any], str],
    ):
        self._place = str(source) if isinstance(source, str | Path) else "captions"
        self._found: dict[str, str] | list[str] | Callable[[Any], str]
        if isinstance(source, str | Path):
            self._found = _by_name(_read(Path(source)))
        elif isinstance(source, Mapping):
            self._found = _by_name((f"captions[{name!r}]", name, text)
                                   for name, text in source.items())
        elif isinstance(source, Sequence):
            self._found = [_checked(text, f"captions[{i}]") for i, text in enumerate(source)]
        else:
            self._found = source

    @property
    def texts(self) -> list[str] | None:
        """Every text that there is, or None for a function."""
        if isinstance(self._found, dict):
            return list(self._found.values())
        return self._found if isinstance(self._found, list) else None

    def text(self, image: str | int) -> str:
        """The text of an image.

        Args:
            image: its file name; or its index in the dataset, for captions that are a sequence.

        Raises:
            ValueError: there is none.
        """
        found = self._found
        if isinstance(found, dict):
            if (entry := _find_entry(found, image)) is not None:
                return found[entry]
        elif not isinstance(found, list):
            return _checked(found(image), f"captions({image!r})")
        elif isinstance(image, int) and 0 <= image < len(found):
            return found[image]
        raise ValueError(
            f"{self._place}: expected a caption for {image!r}, found captions for {len(found)} "
            "other images. A sequence goes by index, which AugmentedDataset and expand give; all "
            "else goes by file name.")

    def images(self, names: Sequence[str] | None, count: int) -> Sequence[str | int]:
        """What to call `text` with for each image of a dataset, all of which must have a caption.

        Args:
            names: the images' file names, or None if the dataset keeps none.
            count: how many images it has.

        Raises:
            ValueError: a caption is missing, or fits two images.
        """
        found = self._found
        if isinstance(found, list) and len(found) != count:
            raise ValueError(f"captions must hold one text for each of the {count} images, got "
                             f"{len(found)}.")
        if not isinstance(found, dict):
            return range(count) if names is None or isinstance(found, list) else names
        if names is None:
            raise ValueError(
                f"{self._place}: captions go by file name, and this dataset keeps no file names "
                "(samples, as ImageFolder has them); pass a list with one text per image.")
        fits: dict[str | None, list[str]] = {}
        for name in dict.fromkeys(names):
            fits.setdefault(_find_entry(found, name), []).append(name)
        if missing := fits.pop(None, []):
            raise ValueError(
                f"{self._place}: expected a caption for each of the {count} images, found none for "
                f"{len(missing)} of them, such as {missing[0]!r}.")
        for entry, several in fits.items():
            if len(several) > 1:
                raise ValueError(
                    f"{self._place}: {entry!r} fits {several[0]!r} and {several[1]!r}; write file "
                    "names with their folders.")
        return names


def _find_entry(by_name: Mapping[str, str], image: str | int) -> str | None:
    """The longest file name in ``by_name`` that the image's path ends with."""
    parts = str(image).replace("\\", "/").split("/")
    endings = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((ending for ending in endings if ending in by_name), None)


def _by_name(entries: Iterable[tuple[str, Any, Any]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for where, name, text in entries:
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where}: {_NAME} must be text, got {name!r}.")
        name = str(PurePosixPath(name.replace("\\", "/")))
        if name in texts:
            raise ValueError(f"{where}: expected each file once, found {name!r} again.")
        texts[name] = _checked(text, where)
    return texts


def _checked(text: Any, where: str) -> str:
    if not isinstance(text, str) or not text.strip() or SURROGATES.search(text):
        raise ValueError(f"{where}: expected a text in UTF-8, found {text!r}.")
    return text


def _read(path: Path) -> Iterator[tuple[str, Any, Any]]:
    """Place, file name and text of each entry of a file."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a file of captions, found none.")
    for where, row in read_table(path, "a .csv or a .jsonl file of captions"):
        if not {_NAME, _TEXT} <= row.keys():
            raise ValueError(f"{where}: expected {_NAME!r} and {_TEXT!r}, found "
                             f"{', '.join(map(repr, row))}.")
        yield where, row[_NAME], row[_TEXT]


def class_prompt(template: str, class_name: str) -> str:
    """A prompt for a class; underscores of its name become spaces."""
    name = class_name.replace("_", " ").strip()
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return template.format(class_name=name, article=article)


class Conditioned(Protocol):
    """A model that is conditioned on a text, on a class, or on nothing."""

    name: str
    condition_kind: Literal["text", "class", "none"]
    class_names: list[str] | None
    guidable: bool


class Conditioner:
    """Turns labels, or the names of images, into conditions.

    Args:
        class_names: the name of each class in label order, or None where labels are names already
            or are not needed.
        prompt: text in which ``{class_name}`` and ``{article}`` ("a" or "an") are filled in, or a
            function from a label to a prompt.
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
        self.class_names = list(class_names) if class_names is not None else None
        check_names(self.class_names or ())
        self.prompt, self.captions = prompt, captions
        self._unknown_classes: set[str] = set()
        fields = {name for _, name, _, _ in Formatter().parse(prompt) if name is not None
                  } if isinstance(prompt, str) else set()
        if unknown := fields - {"class_name", "article"}:
            raise ValueError(f"prompt may use {{class_name}} and {{article}}, got {prompt!r} with "
                             f"{', '.join(sorted(unknown))}.")
        self._uses_label = bool(fields) or not isinstance(prompt, str)

    def needs_label(self, model: Conditioned) -> bool:
        """Whether images can be made only with their labels."""
        return self.captions is None and (
            model.condition_kind == "class" or model.condition_kind == "text" and self._uses_label)

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
                raise ValueError(
                    f"captions are for text-to-image models, and {model.name} is none.")
            if image is None:
                raise ValueError(
                    "captions go by file name, and the image has none: use AugmentedDataset or "
                    "expand, or a labels_getter that returns the file name.")
            return self.captions.text(image)
        if model.condition_kind == "text":
            return self._prompt_for(label)
        if model.condition_kind == "none" or label is None and model.guidable:
            return None  # for a model of classes: the null class
        number, name = self._class_of(label)
        known = model.class_names
        if name is None or not known:
            return class_number(number, len(known) if known else None)
        same = match_class(name, known)
        if same is None and model.guidable:
            self._warn_of_unknown_classes(name, model)
            return None
        return name if same is None else known[same]

    def _warn_of_unknown_classes(self, name: str, model: Conditioned) -> None:
        """Warn once of this class and of all others that the model has no class for."""
        if name in self._unknown_classes:
            return  # asked for each image: classes are compared once
        known = model.class_names or []
        unknown = [each for each in dict.fromkeys((name, *(self.class_names or ())))
                   if each not in self._unknown_classes and match_class(each, known) is None]
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
        if not isinstance(self.prompt, str) or self._uses_label and self.class_names is None:
            return None
        return [class_prompt(self.prompt, name) for name in self.class_names or ()
                ] if self._uses_label else [self.prompt]

    def _prompt_for(self, label: Any) -> str:
        if not isinstance(self.prompt, str):
            return self.prompt(plain_label(label))
        if not self._uses_label:
            return self.prompt
        number, name = self._class_of(label)
        if name is None:
            raise ValueError(
                f"class_names must be given to put label {class_number(number)} into a prompt, or "
                "a prompt without {class_name}.")
        return class_prompt(self.prompt, name)

    def _class_of(self, label: Any) -> tuple[Any, str | None]:
        """Number and name of a class; the label itself for the first where no names are given."""
        if self.class_names is not None:
            number = number_labels([label], self.class_names)[0][0]
            return number, self.class_names[number]
        name = plain_label(label)
        return label, name if isinstance(name, str) else None
