"""One text for each image."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

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

    Attributes:
        texts: every text that there is; None for a function.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, or a file name twice.
    """

    def __init__(
        self,
        source: str | Path | Mapping[str, str] | Sequence[str] | Callable[[Any], str],
    ):
        self._place = "captions"
        self._by_name: dict[str, str] | None = None
        self._by_index: list[str] | None = None
        self._function: Callable[[Any], str] | None = None
        if isinstance(source, str | Path):
            self._place = str(source)
            self._by_name = _collect(_read(Path(source)))
        elif isinstance(source, Mapping):
            self._by_name = _collect((f"captions[{name!r}]", name, text)
                                     for name, text in source.items())
        elif isinstance(source, Sequence):
            self._by_index = [_checked(text, f"captions[{i}]") for i, text in enumerate(source)]
        elif callable(source):
            self._function = source
        else:
            raise TypeError(
                "captions must be a file, a mapping, a sequence or a function, got "
                f"{type(source).__name__}."
            )

    @property
    def texts(self) -> list[str] | None:
        return list(self._by_name.values()) if self._by_name is not None else self._by_index

    def text(self, image: str | int) -> str:
        """The text of an image.

        Args:
            image: its file name; or its index in the dataset, for captions that are a sequence.

        Raises:
            ValueError: there is none.
        """
        if self._by_name is not None:
            entry = _find_entry(self._by_name, image)
            if entry is None:
                raise ValueError(
                    f"{self._place}: expected a caption for {image!r}, found captions for "
                    f"{len(self._by_name)} other files."
                )
            return self._by_name[entry]
        if self._by_index is not None:
            if not isinstance(image, int) or not 0 <= image < len(self._by_index):
                raise ValueError(
                    f"captions is a sequence of {len(self._by_index)} texts, which goes by index, "
                    f"and the image is known as {image!r}; use AugmentedDataset or expand, or give "
                    "captions by file name."
                )
            return self._by_index[image]
        assert self._function is not None
        return _checked(self._function(image), f"captions({image!r})")

    def images(self, names: Sequence[str] | None, count: int) -> Sequence[str | int]:
        """What to call `text` with for each image of a dataset, all of which must have a caption.

        Args:
            names: the images' file names; None: the dataset keeps none.
            count: how many images it has.

        Raises:
            ValueError: a caption is missing, or fits two images.
        """
        if self._by_index is not None:
            if len(self._by_index) != count:
                raise ValueError(
                    f"captions must hold one text for each of the {count} images, got "
                    f"{len(self._by_index)}."
                )
            return range(count)
        if self._by_name is None:
            return range(count) if names is None else names
        if names is None:
            raise ValueError(
                f"{self._place}: captions go by file name, and this dataset keeps no file names "
                "(samples, as ImageFolder has them); pass a list with one text per image."
            )
        found: dict[str, str] = {}
        missing = []
        for name in names:
            entry = _find_entry(self._by_name, name)
            if entry is None:
                missing.append(name)
            elif found.setdefault(entry, name) != name:
                raise ValueError(
                    f"{self._place}: {entry!r} fits {found[entry]!r} and {name!r}; write file "
                    "names with their folders."
                )
        if missing:
            raise ValueError(
                f"{self._place}: expected a caption for each of the {count} images, found none for "
                f"{len(missing)} of them, such as {missing[0]!r}."
            )
        return names


def _find_entry(by_name: Mapping[str, str], image: str | int) -> str | None:
    """The longest file name in ``by_name`` that the image's path ends with."""
    parts = str(image).replace("\\", "/").split("/")
    endings = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((ending for ending in endings if ending in by_name), None)


def _collect(entries: Iterator[tuple[str, Any, Any]]) -> dict[str, str]:
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
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: expected a text, found {text!r}.")
    return text


def _read(path: Path) -> Iterator[tuple[str, Any, Any]]:
    """Place, file name and text of each entry of a file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of captions, found none.")
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise ValueError(f"{path}: expected a .csv or a .jsonl file of captions.")
    is_csv, number = path.suffix.lower() == ".csv", 0
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows: Iterable[Any] = csv.DictReader(file) if is_csv else file
            for number, row in enumerate(rows, 1 + is_csv):
                if not is_csv and not row.strip():
                    continue
                row, where = row if is_csv else json.loads(row), f"{path}, line {number}"
                if not isinstance(row, dict) or not {_NAME, _TEXT} <= row.keys():
                    found = ", ".join(map(repr, row)) if isinstance(row, dict) else repr(row)
                    raise ValueError(f"expected {_NAME!r} and {_TEXT!r}, found {found}")
                yield where, row[_NAME], row[_TEXT]
    except (csv.Error, ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number}: not a file of captions: {error}.") from error
