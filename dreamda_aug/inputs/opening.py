"""Image files, opened with care: what they are is looked at before they are decoded."""

from pathlib import Path

import PIL.Image

from dreamda_aug.inputs.images import UNREADABLE

# 8192 x 8192. An image takes about 24 bytes a pixel while it is worked on: 1.6 GB for this many.
MAX_PIXELS = 2**26


class TooLarge(ValueError):
    """An image has more pixels than `MAX_PIXELS`; the message is the same on every machine."""


def open_image(path: str | Path) -> PIL.Image.Image:
    """The image in a file, decoded.

    Raises:
        TooLarge: its header says that it has more than `MAX_PIXELS` pixels; it is not decoded.
        OSError: there is no such file, or something else than a file.
        Others: what Pillow raises for broken files, see `UNREADABLE`.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        # a pipe or a device would be waited for, or never end
        raise OSError(f"{path}: expected a file")
    # Pillow warns of large images too. No catch_warnings here: leaving it, Python forgets which
    # warnings it has shown, and every other one would be repeated for each image.
    try:
        opened = PIL.Image.open(path)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise TooLarge(_too_large()) from error
    with opened as image:
        check_pixels(*image.size)
        image.load()
        return image


def read_image(path: str | Path) -> PIL.Image.Image:
    """The same, with one kind of error.

    Raises:
        ValueError: it cannot be read; the message names the file.
    """
    try:
        return open_image(path)
    except UNREADABLE as error:
        raise ValueError(f"{path}: could not be read as an image: {error}.") from error


def check_pixels(width: int, height: int) -> None:
    """Refuse an image that is too large; raises `TooLarge`."""
    if width * height > MAX_PIXELS:
        raise TooLarge(_too_large())


def _too_large() -> str:
    return f"larger than {MAX_PIXELS:,} pixels"
