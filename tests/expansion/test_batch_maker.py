"""From seed images to PNG files: what the file keeps, and what a batch has on record."""

import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import pytest
import torch
from expansion.folders import write_images
from torch.utils.data import TensorDataset

from dreamda_aug.expansion import Expansion, expand, read_manifest, regenerate


def test_a_stored_image_lies_and_looks_as_readers_show_the_real_one(synthesizer, tmp_path):
    """Orientation and colour profile; other EXIF, such as the place, is not true of it."""
    root, profile = tmp_path / "train" / "a", PIL.ImageCms.createProfile("sRGB")
    root.mkdir(parents=True)
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    PIL.Image.new("RGB", (24, 16), "red").save(
        root / "0.jpg", exif=exif, icc_profile=PIL.ImageCms.ImageCmsProfile(profile).tobytes())
    expand(tmp_path / "train", tmp_path / "out", synthesizer, 1)
    with PIL.Image.open(root / "0.jpg") as real, PIL.Image.open(
        tmp_path / "out" / next(read_manifest(tmp_path / "out")).file) as made:
        assert made.info["icc_profile"] == real.info["icc_profile"]
        assert dict(made.getexif()) == {0x0112: 6} and made.size == real.size
        shown = PIL.ImageOps.exif_transpose(made)
        assert shown.size == PIL.ImageOps.exif_transpose(real).size == (16, 24)


@pytest.mark.parametrize("images, mode, loss", [
    (torch.randint(256, (2, 1, 16, 16), dtype=torch.uint8), "L", ""),
    (torch.rand(2, 3, 16, 16), "RGB", "rounded to 8 bits"),
    (torch.randint(-1024, 3072, (2, 1, 16, 16), dtype=torch.int16), "I;16", "rescaled to 16 bits"),
], ids=["bytes", "floats", "Hounsfield units"])
@pytest.mark.filterwarnings("ignore:.*colours of the seed images are lost")
def test_what_a_file_does_not_keep_is_on_record(synthesizer, tmp_path, images, mode, loss):
    data = TensorDataset(images, torch.tensor([0, 1]))
    summary = expand(data, tmp_path / "out", synthesizer, 1)
    for line in read_manifest(tmp_path / "out"):
        assert PIL.Image.open(tmp_path / "out" / line.file).mode == mode
        assert line.loss.startswith(loss) and bool(line.loss) == bool(loss)
        assert regenerate(tmp_path / "out", line.id, synthesizer=synthesizer, source=data).equal
    assert any("PNG files keep no more" in warning for warning in summary.warnings) == bool(loss)


def test_a_batch_that_was_halved_is_on_record_and_made_again_as_it_was(
    synthesizer, tmp_path, monkeypatch
):
    expansion = Expansion(write_images(tmp_path / "train", {"a": 3}), synthesizer, 2)
    sampler = expansion.maker.sampler
    generate = sampler._generate

    def limited(trajectories, *arguments):
        if len(trajectories) > 3:
            raise torch.OutOfMemoryError("no room")
        return generate(trajectories, *arguments)

    monkeypatch.setattr(sampler, "_generate", limited)
    summary = expansion.run(tmp_path / "out")
    assert {line.batch_size for line in read_manifest(tmp_path / "out")} == {2}
    # the second batch has two samples: no smaller ones than planned
    assert summary.stats.small_batches == 4
    assert any("memory ran out: 4 images" in warning for warning in summary.warnings)
    assert regenerate(tmp_path / "out", "00000001_0001", synthesizer=synthesizer).equal
