import PIL.Image
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from dreamda_aug.adaptation.training_images import open_pictures, read_images, split


class ImagesOnly(Dataset):
    """A dataset without labels."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]


class Grey:
    name, channels, image_size = "grey", 1, (16, 16)

    def encode(self, images):
        return images * 2 - 1


def read(pictures, budget=1000):
    return read_images(pictures, Grey(), 0.2, 0, budget=budget)


def test_class_folders_give_labels_and_some_images_are_held_out(image_folder):
    images = read(open_pictures(image_folder))
    assert images.classes == ["left", "right"]
    assert (len(images.x_0), len(images.held_out)) == (7, 5)
    assert images.x_0.min() >= -1 and images.x_0.max() <= 1
    everything = torch.cat([images.labels, images.held_out_labels])
    assert sorted(everything.tolist()) == [0] * 6 + [1] * 6


def test_labels_none_and_a_flat_folder_are_unlabeled(image_folder):
    for source, labels in ((image_folder, None), (image_folder / "left", "source")):
        images = read(open_pictures(source, labels))
        assert images.classes == [] and set(images.labels.tolist()) == {-1}


def test_tensors_and_datasets_are_sources_too():
    x = torch.rand(6, 16, 16)
    alone = read(open_pictures(x, None))
    paired = read(open_pictures(x[:, None], [0, 1] * 3))
    assert alone.x_0.shape[1:] == (1, 16, 16) and paired.classes == ["0", "1"]
    dataset = TensorDataset(x[:, None], torch.tensor([1, 0] * 3))
    assert read(open_pictures(dataset)).classes == ["0", "1"]
    assert read(open_pictures(dataset, None)).classes == []
    assert len(read(open_pictures(ImagesOnly(x[:, None]), None)).x_0) > 0


def test_an_image_that_cannot_be_read_is_left_out_with_its_name(image_folder):
    (image_folder / "left" / "0.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"1 images could not be read .*left/0\.png"):
        images = read(open_pictures(image_folder))
    assert len(images.x_0) + len(images.held_out) == 11
    assert images.left_out[0].startswith("left/0.png")


def test_no_readable_image_is_an_error(tmp_path):
    (tmp_path / "one.png").write_bytes(b"no image")
    with (pytest.warns(UserWarning, match="could not be read"),
          pytest.raises(ValueError, match="holds no image that can be read")):
        read(open_pictures(tmp_path))


def test_each_class_gives_the_same_share_of_its_images():
    labels = torch.tensor([0] * 40 + [1] * 40 + [2] * 20)[torch.randperm(100)]
    train, held_out = split(labels, 0.2)
    assert labels[held_out].bincount().tolist() == [8, 8, 4]
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(100))


def test_a_class_of_one_image_is_trained_not_measured():
    labels = torch.tensor([0, 0, 0, 1, 0, 0, 0, 0])
    train, held_out = split(labels, 0.2)
    assert 3 in train.tolist() and len(held_out) == 4
    assert not set(train.tolist()) & set(held_out.tolist())


@pytest.mark.parametrize("labels, got", [([-1], "got 1;"), ([0, 1, 2], "got 3;"),
                                         ([0, 1, 2, 3], "got 4 in 4 classes"),
                                         ([0, 1, 2, 2], "got 4 in 3 classes")])
def test_too_few_images_are_refused_with_the_way_out(labels, got):
    with pytest.raises(ValueError, match=f"at least 4 images.*{got}.*--no-early-stopping"):
        split(torch.tensor(labels), 0.2)
    every, none = split(torch.tensor(labels), 0.0)
    assert len(every) == len(labels) and len(none) == 0


def test_no_more_images_are_read_than_steps_can_use():
    opened = []

    def note(index):
        opened.append(index)
        return torch.zeros(1, 16, 16)

    pictures = open_pictures(torch.rand(500, 1, 16, 16), None)
    read(type(pictures)(pictures.names, pictures.labels, [], note), budget=10)
    assert len(set(opened)) == 10 + 64


@pytest.mark.parametrize("source, labels, message", [
    (torch.rand(3, 16, 16), "source", "labels must be given for images in memory"),
    (torch.rand(3, 16, 16), [0, 1], "one for each of the 3 images, got 2"),
    (torch.rand(3, 16, 16), [0, 1, -1], "at least 0, got -1"),
    (torch.rand(3, 16, 16), "mine", "labels must be 'source', None or one for each"),
    (torch.rand(16), None, r"shape \(N, C, H, W\)"),
    ([], None, "holds no images"),
])
def test_bad_sources_and_labels_are_refused(source, labels, message):
    with pytest.raises(ValueError, match=message):
        open_pictures(source, labels)


def test_a_label_outside_the_class_names_is_refused():
    with pytest.raises(ValueError, match="label 2 is outside the 2 class names"):
        open_pictures(torch.rand(3, 16, 16), [0, 1, 2], ["a", "b"])


def test_the_digest_follows_pixels_and_labels(image_folder):
    first = read(open_pictures(image_folder)).digest
    assert read(open_pictures(image_folder)).digest == first
    assert read(open_pictures(image_folder, None)).digest != first
    PIL.Image.new("L", (16, 16)).save(image_folder / "left" / "0.png")
    assert read(open_pictures(image_folder)).digest != first
