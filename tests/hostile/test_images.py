"""Images of every kind: the right pixels back, or an error of ours."""

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamda_aug.inputs.images import read_pixels
from dreamda_aug.inputs.labels import plain_label

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16,
            torch.uint32]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("span", ["full", "top", "bottom", "flat at the top"])
def test_integers_never_wrap(dtype, span):
    limits = torch.iinfo(dtype)
    low, high = {
        "full": (limits.min, limits.max), "top": (limits.max - 7, limits.max),
        "bottom": (limits.min, limits.min + 7), "flat at the top": (limits.max, limits.max),
    }[span]
    pixels = torch.tensor([[[low, high], [high, low]]], dtype=torch.int64).to(dtype)
    found = read_pixels(pixels)
    back = found.restore(found.values)
    assert back.dtype == dtype
    if limits.bits < 64:
        assert torch.equal(back, pixels)
    else:  # float64 has 53 bits: the last ones may go, the sign may not
        assert ((back.double() - pixels.double()).abs() <= 2048).all()
        assert torch.equal(back < 0, pixels < 0)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_deep_pil_images_never_wrap(dtype):
    limits = np.iinfo(dtype)
    array = np.array([[limits.min, limits.max], [limits.max, limits.min]], dtype)
    image = PIL.Image.fromarray(array)
    found = read_pixels(image)
    assert np.array_equal(np.asarray(found.restore(found.values)), array)


@pytest.mark.parametrize("shape", [(1, 0, 4), (3, 4, 0), (0, 1, 4, 4), (1, 3, 0, 0)])
def test_an_image_without_pixels_is_refused(shape):
    with pytest.raises(ValueError, match="an image must hold at least one pixel, got shape"):
        read_pixels(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(), (4,), (4, 4), (1, 1, 1, 4, 4)])
def test_a_tensor_of_another_rank_is_refused(shape):
    with pytest.raises(ValueError, match="an image tensor must have shape"):
        read_pixels(torch.zeros(shape))


@pytest.mark.parametrize("channels", [2, 4, 5, 13])
def test_a_tensor_of_other_channels_is_refused(channels):
    with pytest.raises(ValueError, match=f"must have 1 or 3 channels, got {channels}"):
        read_pixels(torch.zeros(channels, 4, 4))


@pytest.mark.parametrize("value", [-0.5, 1.5, 255.0, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_outside_the_unit_interval_are_refused(value, dtype):
    image = torch.zeros(1, 4, 4, dtype=dtype)
    image[0, 1, 2] = value
    with pytest.raises(ValueError, match="image"):
        read_pixels(image)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
def test_types_that_are_no_pixels_are_refused(dtype):
    with pytest.raises(ValueError, match="must be integer or float"):
        read_pixels(torch.zeros(1, 4, 4, dtype=dtype))


@pytest.mark.parametrize("value", [None, "a.png", 3, [[1, 2]], b"PNG", object()])
def test_what_is_no_image_is_refused(value):
    with pytest.raises(TypeError, match="an image must be a PIL image, a tensor or a numpy"):
        read_pixels(value)


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2, 3), (4, 4, 2), (3, 6, 7), (4, 4, 5), (0, 4),
                                   (4, 0, 3), ()])
def test_an_array_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="an image array must have shape|at least one pixel"):
        read_pixels(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [bool, complex, object, "U3", "datetime64[s]"])
def test_an_array_of_another_type_is_refused(dtype):
    with pytest.raises(ValueError, match="an image array must be integer or float, got"):
        read_pixels(np.zeros((4, 4), dtype))


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "i4", "f4", "f8"])
def test_arrays_come_back_as_they_were(shape, dtype):
    if shape[2:] == (4,) and dtype != "u1":
        pytest.skip("transparency is known for bytes alone")
    values = np.random.default_rng(0).random(shape)
    array = (values if "f" in dtype else (values * 255).round()).astype(dtype)
    found = read_pixels(np.asfortranarray(array))
    back = found.restore(found.values)
    assert back.dtype == array.dtype and back.shape == shape
    np.testing.assert_allclose(back, array, rtol=1e-6)
    assert found.values.shape == (1, 1 if len(shape) == 2 or shape[2] == 1 else 3, 5, 4)


def test_an_array_is_the_image_that_pil_makes_of_it():
    array = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(array)
    assert read_pixels(array).digests == read_pixels(image).digests
    assert torch.equal(read_pixels(array).values, read_pixels(image).values)


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3)])
def test_pil_images_of_every_mode_come_back_in_their_mode_and_size(mode, size):
    image = PIL.Image.new(mode, size)
    found = read_pixels(image)
    assert found.values.shape[2:] == size[::-1]
    assert 0 <= found.values.min() and found.values.max() <= 1
    back = found.restore(found.values)
    assert (back.mode, back.size) == (mode, size)


def test_orientation_profile_and_resolution_stay_with_the_image():
    image = PIL.Image.new("RGB", (4, 4))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image.info.update(exif=exif.tobytes(), icc_profile=b"profile", dpi=(72, 72), comment="mine")
    found = read_pixels(image)
    back = found.restore(found.values)
    assert back.getexif()[0x0112] == 6 and back.info["icc_profile"] == b"profile"
    assert back.info["dpi"] == (72, 72) and "comment" not in back.info


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
def test_bytes_come_back_bit_for_bit(height, width, channels, rng_seed):
    generator = torch.Generator().manual_seed(rng_seed)
    image = torch.randint(256, (channels, height, width), generator=generator, dtype=torch.uint8)
    found = read_pixels(image)
    assert torch.equal(found.restore(found.values), image)


@pytest.mark.parametrize("label", [3, np.int64(3), np.array(3), np.array([3]), [3], (3,),
                                   torch.tensor(3), torch.tensor([3]), [[3]], np.array([[3]])])
def test_a_wrapped_label_is_a_label(label):
    assert plain_label(label) == 3 and type(plain_label(label)) is int


@pytest.mark.parametrize("label", ["cat", [1, 2], (0.5, 0.5), None, {"a": 1}])
def test_what_is_no_single_label_stays_as_it_is(label):
    assert plain_label(label) == label
