"""Opening image files; broken and hostile ones are in tests/hostile."""

import warnings

import PIL.Image
import pytest

from dreamda_aug.inputs.opening import TooLarge, open_image


@pytest.fixture
def path(tmp_path):
    PIL.Image.new("L", (4, 4)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_a_warning_that_was_shown_is_not_repeated_after_an_image_was_opened(path):
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            warnings.warn("once", stacklevel=1)
            open_image(path)
    assert len(shown) == 1


def test_where_warnings_are_errors_a_large_image_is_refused_all_the_same(path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)  # Pillow warns up to twice as many
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(TooLarge, match="larger than 67,108,864 pixels"):
            open_image(path)
