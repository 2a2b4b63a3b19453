"""One text for each image."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dreamda_aug.inputs.labels import SURROGATES
from dreamda_aug.inputs.listing import read_table

# The fields of the authors' caption files, and of Hugging Face's metadata files.
_NAME, _TEXT = "file_name", "text"


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

    def __init__(
        self,
        source: str | Path | Mapping[str, str] | Sequence[str] | Callable[[Any], str],
    ):
        self._place = "captions"
        self._found: dict[str, str] | list[str] | Callable[[Any], str]
        if isinstance(source, str | Path):
            self._place = str(source)
            self._found = _by_name(_read(Path(source)))
        elif isinstance(source, Mapping):
            self._found = _by_name((f"captions[{name!r}]", name, text)
                                   for name, text in source.items())
        elif isinstance(source, Sequence):
            self._found = [_checked(text, f"captions[{i}]") for i, text in enumerate(source)]
        elif callable(source):
            self._found = source
        else:
            raise TypeError(
                "captions must be a file, a mapping, a sequence or a function, got "
                f"{type(source).__name__}."
            )

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
            entry = _find_entry(found, image)
            if entry is None:
                raise ValueError(
                    f"{self._place}: expected a caption for {image!r}, found captions for "
                    f"{len(found)} other files."
                )
            return found[entry]
        if isinstance(found, list):
            if not isinstance(image, int) or not 0 <= image < len(found):
                raise ValueError(
                    f"captions is a sequence of {len(found)} texts, which goes by index, and the "
                    f"image is known as {image!r}; use AugmentedDataset or expand, or give "
                    "captions by file name."
                )
            return found[image]
        return _checked(found(image), f"captions({image!r})")

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
                "(samples, as ImageFolder has them); pass a list with one text per image."
            )
        entries = [_find_entry(found, name) for name in names]
        missing = [name for name, entry in zip(names, entries) if entry is None]
        if missing:
            raise ValueError(
                f"{self._place}: expected a caption for each of the {count} images, found none for "
                f"{len(missing)} of them, such as {missing[0]!r}."
            )
        first: dict[str | None, str] = {}
        for name, entry in zip(names, entries):
            if first.setdefault(entry, name) != name:
                raise ValueError(
                    f"{self._place}: {entry!r} fits {first[entry]!r} and {name!r}; write file "
                    "names with their folders."
                )
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
