"""What `SeedImages` reads from: one interface for files, datasets and images in memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor


class Sample(NamedTuple):
    """One sample of a reader.

    Attributes:
        image: before the dataset's own transform.
        label: as the dataset gives it; None if it gives images alone.
        put_back: from another image in its place to what the dataset would have returned.
    """

    image: Any
    label: Any
    put_back: Callable[[Any], Any]


class Reader:
    """Numbered images, read one at a time; subclasses override what they have.

    Attributes:
        paths: a name for each image, the same on every machine.
        file_names: what captions find the images by, or None.
        names: of the classes, in label order, or None.
        has_labels: whether `labels` knows any.
        root: the folder of the files, or None.
        problems: what was left out while listing, as text.
        skipped: how many entries of a list were left out.
        may_vary: whether an image may differ each time it is read.
        is_renumbered: whether labels are others than the dataset's names of classes are for.
    """

    file_names: list[str] | None = None
    names: list[str] | None = None
    has_labels = False
    root: Path | None = None
    problems: Sequence[str] = ()
    skipped = 0
    may_vary = False
    is_renumbered = False

    def __init__(self, count: int):
        self.paths = [f"#{index}" for index in range(count)]

    def __len__(self) -> int:
        return len(self.paths)

    def fetch(self, index: int) -> Any:
        """What lies there, as it is; raises what `UNREADABLE` lists if it is broken."""
        raise NotImplementedError

    def sample(self, index: int, found: Any) -> Sample:
        """The sample in what `fetch` has just found; raises if it is of the wrong kind."""
        return Sample(found, None, lambda image: image)

    def read(self, index: int) -> Sample:
        """Both."""
        return self.sample(index, self.fetch(index))

    def put_back(self, index: int, image: Any, label: Any) -> Any:
        """What ``put_back`` of a sample gives; it is read only where that is necessary."""
        return self.read(index).put_back(image)

    def labels(self, indices: Sequence[int]) -> list[Any]:
        """Labels as samples have them."""
        return [None] * len(indices)

    def file_digest(self, index: int) -> str:
        """SHA-256 of a file, in hexadecimal; empty if there is none."""
        return ""

    def size(self, index: int) -> int:
        """Size of a file when it was listed, in bytes; -1 if there was none."""
        return -1

    def lies_at(self, index: int, path: str) -> bool:
        """Whether an image is the one that a record calls by this path."""
        return self.paths[index] == path


class MemoryReader(Reader):
    """Images in memory: a tensor (N, C, H, W) or (N, H, W), or a list of images."""

    def __init__(self, images: Sequence[Any] | Tensor):
        super().__init__(len(images))
        self._images = images

    def fetch(self, index: int) -> Any:
        image = self._images[index]
        return image[None] if isinstance(image, Tensor) and image.ndim == 2 else image
