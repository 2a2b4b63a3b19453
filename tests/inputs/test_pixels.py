"""Images of every kind to pixels, to a model's size, back to their own kind, and to PNG files."""

import os
import warnings
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from pictures import MODES, picture
from torchvision.transforms.v2 import functional as F

from dreamda_aug.inputs.listing import UNREADABLE, TooLarge, open_image
from dreamda_aug.inputs.pixels import fit_back, fit_to, image_digest, read_pixels

GREY = SimpleNamespace(name="grey", channels=1, image_size=(8, 12))
COLOUR = SimpleNamespace(name="colour", channels=3, image_size=(8, 12))
LEVELS = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
# Colour spaces that Pillow cannot make of RGB without rounding.
ROUNDED = ["CMYK", "YCbCr", "HSV", "LAB"]


def pixels_of(image):
    return np.asarray(image.convert("RGBA") if getattr(image, "mode", "") == "P" else image)


@pytest.mark.parametrize("mode", [*MODES, "YCbCr", "HSV", "LAB"])
def test_new_pixels_come_back_in_the_mode_of_the_image_with_its_transparency(mode):
    image = picture("RGB").convert(mode) if mode in ROUNDED else picture(mode)
    pixels = read_pixels(image)
    is_grey = mode in ("1", "L", "LA") or mode.startswith(("I", "F"))
    assert pixels.values.shape == (1, 1 if is_grey else 3, 24, 20)
    assert 0 <= pixels.values.min() and pixels.values.max() <= 1
    made = pixels.restore(1 - pixels.values)
    assert (made.mode, made.size) == (mode, image.size)
    assert (np.asarray(made) != np.asarray(image)).any()
    if mode in ("LA", "RGBA"):
        assert made.getchannel("A").tobytes() == image.getchannel("A").tobytes()


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


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64, torch.uint32], ids=str)
def test_integers_never_wrap(dtype):
    least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    for low, high in ((least, most), (most - 7, most), (least, least + 7), (most, most)):
        pixels = torch.tensor([[[low, high], [high, low]]], dtype=torch.int64).to(dtype)
        found = read_pixels(pixels)
        back = found.restore(found.values)
        # float64 has 53 bits: the last ones of 64 may go, the sign may not
        rounding = 2048 if dtype == torch.int64 else 0
        assert back.dtype == dtype
        assert ((back.double() - pixels.double()).abs() <= rounding).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_that_are_bytes_are_the_image_of_these_bytes(dtype):
    floats, bytes_ = read_pixels((LEVELS.double() / 255).to(dtype)), read_pixels(LEVELS)
    assert floats.digests == bytes_.digests and torch.equal(floats.values, bytes_.values)
    assert floats.restore(floats.values).dtype == dtype
    both = read_pixels(torch.stack([LEVELS / 255, torch.rand(1, 16, 16)]))
    assert both.digests[0] == bytes_.digests[0] and torch.equal(both.values[:1], bytes_.values)


def test_the_digest_is_of_the_pixels_their_shape_and_type():
    image = torch.rand(3, 4, 6)
    changed = image.clone()
    changed[0, 0, 0] += 1e-6
    digests = [image_digest(each) for each in (image, changed, image.reshape(3, 6, 4))]
    assert len(set(digests)) == 3 and digests[0] == image_digest(image.clone())
    assert read_pixels(torch.stack([changed, image])).digests == [digests[1], digests[0]]
    as_tensor = F.pil_to_tensor(picture("RGB"))
    of_array = read_pixels(np.asarray(picture("RGB")))
    assert read_pixels(picture("RGB")).digests == read_pixels(as_tensor).digests == of_array.digests
    floats = np.random.default_rng(0).random((4, 4), np.float32)
    # in a window of its own, and in [0, 1]
    assert read_pixels(PIL.Image.fromarray(floats)).digests != read_pixels(floats).digests


def test_of_exif_the_orientation_stays_and_profile_and_resolution_do():
    image = PIL.Image.new("RGB", (4, 4))
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    image.info.update(exif=exif.tobytes(), icc_profile=b"profile", dpi=(72, 72), comment="mine")
    found = read_pixels(image)
    for back in (found.restore(found.values), found.store(found.values)):
        assert dict(back.getexif()) == {0x0112: 6} and back.info["icc_profile"] == b"profile"
        assert back.info["dpi"] == (72, 72) and "comment" not in back.info
    printed = image.convert("CMYK")
    found = read_pixels(printed)
    assert found.restore(found.values).info["icc_profile"] == b"profile"
    assert "icc_profile" not in found.store(found.values).info  # PNG files are RGB
    broken = PIL.Image.new("RGB", (4, 4))
    broken.info["exif"] = b"Exif\0\0broken"
    assert "exif" not in read_pixels(broken).restore(found.values).info


STORED = [
    (picture("RGBA"), "RGBA", ""), (picture("1"), "L", ""), (picture("P"), "RGB", ""),
    (picture("I;16"), "I;16", ""), (picture("F"), "I;16", "rescaled to 16 bits"),
    (LEVELS / 255, "L", ""), (torch.rand(3, 8, 8), "RGB", "rounded to 8 bits"),
    (LEVELS.short() * 100, "I;16", ""), (LEVELS.int() * 1000 - 5, "I;16", "rescaled to 16 bits"),
    (LEVELS.short().expand(3, 16, 16), "RGB", "rounded to 8 bits"),
    (np.asarray(picture("L"))[..., None], "L", ""), (np.asfortranarray(picture("RGB")), "RGB", ""),
    (np.asarray(picture("I;16")).astype(">u2"), "I;16", ""),
]


@pytest.mark.parametrize("image, mode, loss", STORED)
def test_every_image_can_be_stored_as_png_with_a_stated_loss_and_loaded_again(
    image, mode, loss, tmp_path
):
    pixels = read_pixels(image)
    restored = pixels.restore(pixels.values)
    np.testing.assert_allclose(pixels_of(restored), pixels_of(image), rtol=1e-6, atol=2e-4)
    pixels.store(pixels.values).save(tmp_path / "a.png")
    stored = open_image(tmp_path / "a.png")
    assert stored.mode == mode and pixels.loss.startswith(loss) and bool(pixels.loss) == bool(loss)
    back = pixels.load(stored)
    if isinstance(image, PIL.Image.Image):
        assert back.mode == image.mode
        back, image = pixels_of(back), pixels_of(image)
    assert (type(back), back.dtype, back.shape) == (type(image), image.dtype, image.shape)
    back, image = np.asarray(back, float), np.asarray(image, float)
    step = np.ptp(image) / (65535 if loss.startswith("rescaled") else 255)
    np.testing.assert_allclose(back, image, atol=0.6 * step + 1e-6 if loss else 1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("model", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.filterwarnings("ignore:grey makes grey images")
def test_pixels_fit_the_model_and_what_it_makes_fits_the_image(channels, model):
    values = torch.rand(2, channels, 17, 9)
    fitted = fit_to(values, model)
    assert fitted.shape == (2, model.channels, 8, 12)
    assert 0 <= fitted.min() and fitted.max() <= 1
    assert fit_back(fitted, values).shape == values.shape
    if channels == model.channels:
        torch.testing.assert_close(fitted, F.resize(values, [8, 12], antialias=True).clamp(0, 1))
    same = torch.rand(2, model.channels, 8, 12)
    assert torch.equal(fit_to(same, model), same) and torch.equal(fit_back(same, same), same)


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


def with_value(value):
    image = torch.zeros(1, 4, 4, dtype=torch.bfloat16)
    image[0, 1, 2] = value
    return image


@pytest.mark.parametrize("image, message", [
    *((with_value(value), message) for value, message in (
        (-0.5, r"must lie in \[0, 1\], got values from -0.5 to 0; divide"),
        (255.0, "to 255; .* put DreamDAugment before Normalize"), (np.nan, "NaN or infinite"))),
    (PIL.Image.fromarray(np.full((4, 4), np.inf, np.float32)), "NaN or infinite"),
    (torch.rand(2, 16, 16), "must have 1 or 3 channels, got 2"),
    (torch.rand(16, 16), r"must have shape \(C, H, W\) or \(B, C, H, W\), got \(16, 16\)"),
    (torch.zeros(3, 4, 0), "must hold at least one pixel, got 0 x 4"),
    (torch.zeros(0, 1, 4, 4), "must hold at least one pixel"),
    (torch.ones(3, 16, 16, dtype=torch.bool), "must be integer or float, got torch.bool"),
    *((np.zeros(shape, np.uint8), "an image array must have shape") for shape in (
        (4,), (2, 2, 2, 3), (4, 4, 2))),
    (np.zeros((0, 4), np.uint8), "at least one pixel"),
    (np.zeros((4, 4), "U3"), "an image array must be integer or float, got"),
    ("a.png", "an image must be a PIL image, a tensor or a numpy array, got str"),
])
def test_bad_images_are_refused(image, message):
    with pytest.raises((ValueError, TypeError), match=message):
        read_pixels(image)


def test_files_are_opened_with_care(tmp_path, monkeypatch):
    PIL.Image.new("L", (4, 4)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UNREADABLE, match="expected a regular file, found a FIFO"):
        open_image(tmp_path / "pipe.png")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            warnings.warn("once", stacklevel=1)
            open_image(tmp_path / "a.png")
    assert len(shown) == 1  # a warning that was shown is not repeated
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)  # Pillow warns up to twice as many
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TooLarge, match="larger than 67,108,864 pixels"):
            open_image(tmp_path / "a.png")
    monkeypatch.setattr("dreamda_aug.inputs.listing.MAX_PIXELS", 100)
    for image in (PIL.Image.new("L", (20, 20)), torch.rand(1, 20, 20), np.zeros((20, 20), "u1")):
        with pytest.raises(TooLarge, match="larger than 100 pixels"):
            read_pixels(image)
