"""Former place of `dreamda_aug.inputs.pixels`."""

from pathlib import Path

import PIL.Image

from dreamda_aug.inputs.pixels import MAX_PIXELS as MAX_PIXELS
from dreamda_aug.inputs.pixels import UNREADABLE
from dreamda_aug.inputs.pixels import TooLarge as TooLarge
from dreamda_aug.inputs.pixels import _check_size as check_pixels
from dreamda_aug.inputs.pixels import open_image as open_image

__all__ = ["MAX_PIXELS", "TooLarge", "check_pixels", "open_image", "read_image"]


def read_image(path: str | Path) -> PIL.Image.Image:
    try:
        return open_image(path)
    except UNREADABLE as error:
        raise ValueError(f"{path}: could not be read as an image: {error}.") from error
