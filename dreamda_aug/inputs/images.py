"""Former place of `dreamda_aug.inputs.pixels`."""

from typing import Any

import numpy as np
import PIL.Image
import torch

from dreamda_aug.inputs.pixels import UNREADABLE as UNREADABLE
from dreamda_aug.inputs.pixels import Image as Image
from dreamda_aug.inputs.pixels import ImageFormat as ImageFormat
from dreamda_aug.inputs.pixels import Pixels as Pixels
from dreamda_aug.inputs.pixels import channels_of as channels_of
from dreamda_aug.inputs.pixels import fit_back as fit_back
from dreamda_aug.inputs.pixels import fit_to as fit_to
from dreamda_aug.inputs.pixels import image_digest as image_digest
from dreamda_aug.inputs.pixels import read_pixels as read_pixels


def array_to_pil(array: np.ndarray[Any, Any]) -> PIL.Image.Image:
    return PIL.Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def has_8_bits(image: Image) -> bool:
    if isinstance(image, PIL.Image.Image):
        return not image.mode.startswith(("I", "F"))
    return image.dtype in (torch.uint8, np.uint8)
