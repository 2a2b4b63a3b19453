import base64
import io

import PIL.Image
import pytest
import torch

from dreamda_aug.report.rendering import make_thumbnail, pair_distances


def decoded(thumbnail):
    return PIL.Image.open(io.BytesIO(base64.b64decode(thumbnail.data.partition(",")[2])))


@pytest.mark.parametrize("mode", ["1", "RGBA", "I;16"])
def test_thumbnails_are_small_whatever_the_image(mode):
    found = make_thumbnail(PIL.Image.new(mode, (1000, 500)), 256)
    assert found.data.startswith("data:image/jpeg;base64,") and len(found.data) < 20_000
    assert found.side == 256 and decoded(found).size == (256, 128)
    assert found.features.shape == (256,) and found.features.tolist() == [0] * 256


def test_small_images_stay_pixel_for_pixel_what_they_are():
    pixels = torch.randint(256, (20, 30), dtype=torch.uint8)
    image = PIL.Image.fromarray(pixels.numpy())
    found = make_thumbnail(image, 256)
    assert found.data.startswith("data:image/png") and decoded(found).tobytes() == image.tobytes()


def test_pairs_are_compared_by_root_mean_square():
    grey = [PIL.Image.new("L", (8, 8), level) for level in (0, 51, 255)]
    total, count = pair_distances(grey)
    assert count == 3 and total == pytest.approx(0.2 + 1 + 0.8)
    other = PIL.Image.new("L", (4, 8), 9)
    assert pair_distances([grey[0], other]) == (0.0, 0) and pair_distances(grey[:1]) == (0.0, 0)
