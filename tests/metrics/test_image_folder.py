"""The reading of folders of images, against torchvision."""



import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as v2

from dreamda_aug.metrics import FolderImages


def save(path, value=100, size=(4, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path)


def test_class_folders_are_read_as_torchvisions_image_folder_reads_them(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    for number, name in enumerate(("b/2.png", "a/1.png", "a/deep/0.png", "c/x.JPG")):
        save(tmp_path / name, 40 * number)
    ours, theirs = FolderImages(tmp_path), datasets.ImageFolder(tmp_path)
    assert [str(path) for path in ours.paths] == [path for path, _ in theirs.samples]
    assert ours.labels == theirs.targets
    assert list(ours.class_names) == theirs.classes
    for (image, label), (expected, target) in zip(
        (ours[i] for i in range(4)), (theirs[i] for i in range(4)), strict=True
    ):
        torch.testing.assert_close(image, v2.to_image(expected) / 255)
        assert label == target


def test_flat_folders_have_no_labels_and_hidden_or_other_files_are_left_out(tmp_path):
    save(tmp_path / "b.png")
    save(tmp_path / "a.png")
    save(tmp_path / ".hidden.png")
    save(tmp_path / ".cache" / "c.png")
    (tmp_path / "manifest.jsonl").write_text("{}")
    (tmp_path / "empty").mkdir()
    folder = FolderImages(tmp_path)
    assert [path.name for path in folder.paths] == ["a.png", "b.png"]
    assert folder.labels is None and folder.class_names == ()
    assert folder[0][1] is None


def test_hidden_folders_inside_a_class_are_left_out(tmp_path):
    save(tmp_path / "dog" / "1.png")
    save(tmp_path / "dog" / ".thumbnails" / "1.png")
    assert len(FolderImages(tmp_path)) == 1


def test_grey_files_are_read_as_colour(tmp_path):
    Image.new("L", (4, 3), 51).save(tmp_path / "grey.png")
    image, _ = FolderImages(tmp_path)[0]
    torch.testing.assert_close(image, torch.full((3, 3, 4), 0.2))


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(NotADirectoryError, match=r"none: expected a folder of images, found nothi"):
        FolderImages(tmp_path / "none")
    save(tmp_path / "mixed" / "top.png")
    save(tmp_path / "mixed" / "dog" / "1.png")
    with pytest.raises(NotADirectoryError, match=r"top.png: expected a folder .* found a file"):
        FolderImages(tmp_path / "mixed" / "top.png")
    with pytest.raises(ValueError, match=r"found both \(top.png beside dog/\); move one"):
        FolderImages(tmp_path / "mixed")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: expected image files .*\.png.* found none"):
        FolderImages(tmp_path / "empty")


def test_a_broken_image_file_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    save(tmp_path / "cut.png", size=(64, 64))
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    Image.new("F", (2, 2)).save(tmp_path / "float.tif")
    for index, name in enumerate(("broken.png", "cut.png", "float.tif")):
        with pytest.raises(OSError, match=rf"{name}: expected a readable image, found: .*replace"):
            FolderImages(tmp_path)[index]
