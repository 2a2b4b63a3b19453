"""Which values of a sample are images, and which labels."""

import numpy as np
import pytest
import torch
from pictures import picture

from dreamda_aug.inputs.images import read_pixels
from dreamda_aug.inputs.rows import is_image


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4), (5, 4, 2), (3, 5, 6),
                                   (2, 5, 4, 3), (5,), (), (1, 1), (1, 1, 1)])
@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">u2", "i2", "i4", "i8", "f2", "f4", "f8",
                                   "?", "c8", "U1"])
def test_what_is_surely_an_image_can_be_one_and_is_read_as_one(shape, dtype):
    array = np.zeros(shape, dtype)
    deep = (5, 4) if dtype in ("u1", "i1", "<u2", ">u2", "i2") else None
    channels = (1, 3, 4) if dtype == "u1" else () if dtype in ("?", "c8", "U1") else (1, 3)
    expected = shape == deep or len(shape) == 3 and shape[:2] == (5, 4) and shape[2] in channels
    assert is_image(array, surely=True) == expected
    assert is_image(array) == (len(shape) in (2, 3) and array.size != 1)
    if expected:
        assert read_pixels(array).values.shape[2:] == (5, 4)


@pytest.mark.parametrize("value, expected", [
    (picture("L", (1, 1)), True), (torch.zeros(3, 4, 4), True), (torch.zeros(4, 4), True),
    (torch.tensor([[3]]), False), (torch.tensor([3]), False), (np.int64(3), False), ("a", False),
    (3, False),
])
@pytest.mark.parametrize("surely", [True, False])
def test_pil_images_and_tensors_are_images_and_single_numbers_are_not(value, expected, surely):
    assert is_image(value, surely=surely) == expected
