"""Images of every kind to pixels, to a model's size and channels, and back to their own kind."""

import warnings
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from pictures import MODES, picture
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from dreamda_aug.inputs.images import fit_back, fit_to, image_digest, read_pixels

GREY = SimpleNamespace(name="grey", channels=1, image_size=(8, 12))
COLOUR = SimpleNamespace(name="colour", channels=3, image_size=(8, 12))
# CMYK goes through RGB, which rounds.
EXACT = [mode for mode in MODES if mode != "CMYK"]


def pixels_of(image):
    return np.asarray(image.convert("RGBA") if image.mode == "P" else image)


@pytest.mark.parametrize("mode", EXACT)
def test_pil_images_come_back_as_they_were(mode):
    image = picture(mode)
    pixels = read_pixels(image)
    assert pixels.values.dtype == torch.float32 and len(pixels.digests) == 1
    assert pixels.values.shape == (1, 3 if mode in ("RGB", "RGBA", "P") else 1, 24, 20)
    assert 0 <= pixels.values.min() and pixels.values.max() <= 1
    again = pixels.restore(pixels.values)
    assert (again.mode, again.size) == (mode, image.size)
    assert np.array_equal(pixels_of(again), pixels_of(image))


@pytest.mark.parametrize("mode", MODES)
def test_new_pixels_take_the_mode_and_keep_the_transparency(mode):
    image = picture(mode)
    pixels = read_pixels(image)
    made = pixels.restore(1 - pixels.values)
    assert (made.mode, made.size) == (mode, image.size)
    assert (np.asarray(made) != np.asarray(image)).any()
    if "A" in mode:
        assert made.getchannel("A").tobytes() == image.getchannel("A").tobytes()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16,
                                   torch.int16])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 20, 24), (2, 3, 16, 16)])
@pytest.mark.parametrize("kind", [torch.Tensor, tv_tensors.Image])
def test_tensors_come_back_as_they_were(dtype, shape, kind):
    image = torch.rand(shape)
    image = image.to(dtype) if dtype.is_floating_point else (image * 255).to(dtype)
    image = tv_tensors.Image(image) if kind is tv_tensors.Image else image
    pixels = read_pixels(image)
    assert type(pixels.values) is torch.Tensor and pixels.values.ndim == 4
    assert len(pixels.digests) == len(pixels.values) == (2 if len(shape) == 4 else 1)
    again = pixels.restore(pixels.values)
    assert (type(again), again.dtype, again.shape) == (type(image), dtype, image.shape)
    torch.testing.assert_close(torch.Tensor(again), torch.Tensor(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("image, low, high", [
    (picture("I;16"), 0, 255 * 16), (picture("F"), 0, 255), (picture("I"), 0, 255),
    (torch.arange(-1000, 3000, 250, dtype=torch.int16).reshape(1, 4, 4), -1000, 2750),
])
def test_a_deep_image_stays_in_its_own_window(image, low, high):
    """Between its own darkest and brightest pixel, not in its type's whole range."""
    pixels = read_pixels(image)
    assert (pixels.values.min(), pixels.values.max()) == (0, 1)
    darkest, brightest = (np.asarray(pixels.restore(torch.full_like(pixels.values, value)))
                          for value in (0.0, 1.0))
    assert (darkest == np.asarray(image).min()).all() and low <= darkest.min()
    assert (brightest == np.asarray(image).max()).all() and brightest.max() <= high


def test_a_flat_deep_image_is_no_division_by_zero():
    flat = PIL.Image.fromarray(np.full((4, 4), 300, np.uint16))
    pixels = read_pixels(flat)
    assert (pixels.values == 0).all()
    assert np.array_equal(np.asarray(pixels.restore(pixels.values)), np.asarray(flat))


def test_the_digest_is_of_the_pixels_their_shape_and_type():
    image = torch.rand(3, 4, 6)
    changed = image.clone()
    changed[0, 0, 0] += 1e-6
    digests = [image_digest(each) for each in
               (image, changed, image.reshape(3, 6, 4), image.double(), image.half())]
    assert len(set(digests)) == 5 and digests[0] == image_digest(image.clone())
    assert read_pixels(torch.stack([changed, image])).digests == [digests[1], digests[0]]
    as_tensor = F.pil_to_tensor(picture("RGB"))
    assert read_pixels(picture("RGB")).digests == read_pixels(as_tensor).digests


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("model", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.filterwarnings("ignore:grey makes grey images")
def test_pixels_fit_the_backbone_and_what_it_makes_fits_the_image(channels, model):
    values = torch.rand(2, channels, 17, 9)
    fitted = fit_to(values, model)
    assert fitted.shape == (2, model.channels, 8, 12)
    assert 0 <= fitted.min() and fitted.max() <= 1
    assert fit_back(fitted, values).shape == values.shape


def test_what_fits_already_is_not_touched():
    values = torch.rand(2, 3, 8, 12)
    assert torch.equal(fit_to(values, COLOUR), values)
    assert torch.equal(fit_back(values, values), values)


def test_resizing_is_torchvisions_with_antialiasing():
    values = torch.rand(1, 3, 40, 36)
    expected = F.resize(values, [8, 12], antialias=True).clamp(0, 1)
    torch.testing.assert_close(fit_to(values, COLOUR), expected)
    assert not torch.allclose(F.resize(values, [8, 12], antialias=False), expected)


def test_grey_is_torchvisions_luminance_and_white_stays_white():
    values = torch.rand(2, 3, 8, 12)
    with pytest.warns(UserWarning, match="grey makes grey images: the colours of the seed images "
                                         "are lost"):
        made = fit_to(values, GREY)
    torch.testing.assert_close(made, F.rgb_to_grayscale(values), atol=2e-4, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no colours, no loss
        assert (fit_to(torch.ones(1, 3, 8, 12), GREY) == 1).all()
        grey = torch.rand(1, 1, 8, 12).expand(-1, 3, -1, -1)
        torch.testing.assert_close(fit_to(grey, GREY), grey[:, :1])


@pytest.mark.parametrize("image, message", [
    (torch.full((3, 16, 16), float("nan")), "NaN or infinite"),
    (PIL.Image.fromarray(np.full((4, 4), np.inf, np.float32)), "NaN or infinite"),
    (torch.linspace(-1, 2, 768).reshape(3, 16, 16),
     r"must lie in \[0, 1\], got values from -1 to 2; put DreamDAugment before Normalize"),
    (torch.rand(5, 16, 16), "must have 1 or 3 channels, got 5"),
    (torch.rand(16, 16), r"must have shape \(C, H, W\) or \(B, C, H, W\), got \(16, 16\)"),
    (torch.ones(3, 16, 16, dtype=torch.bool), "must be integer or float, got torch.bool"),
    (torch.ones(3, 16, 16, dtype=torch.complex64), "must be integer or float, got torch.complex"),
])
def test_bad_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        read_pixels(image)


def test_what_is_no_image_is_refused():
    with pytest.raises(TypeError, match="an image must be a PIL image, .* array, got str"):
        read_pixels("a.png")
