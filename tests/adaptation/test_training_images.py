"""What is read of the images, and what is held out."""

import warnings

import PIL.Image
import pytest
import torch

from dreamda_aug.adaptation.training_images import read_images, split
from dreamda_aug.inputs.seed_images import open_seed_images


class Grey:
    name, channels, image_size = "grey", 1, (16, 16)

    def encode(self, images):
        return images * 2 - 1


def read(source, labels="source", budget=1000):
    return read_images(open_seed_images(source, labels=labels), Grey(), 0.2, 0, budget=budget)


def test_class_folders_give_labels_and_some_images_are_held_out(image_folder):
    images = read(image_folder)
    assert images.classes == ["left", "right"]
    assert (len(images.x_0), len(images.held_out)) == (7, 5)
    assert images.x_0.min() >= -1 and images.x_0.max() <= 1
    everything = torch.cat([images.labels, images.held_out_labels])
    assert sorted(everything.tolist()) == [0] * 6 + [1] * 6


def test_labels_none_and_a_flat_folder_are_unlabeled(image_folder):
    for source, labels in ((image_folder, None), (image_folder / "left", "source")):
        images = read(source, labels)
        assert images.classes == [] and set(images.labels.tolist()) == {-1}


def test_no_readable_image_is_an_error(tmp_path):
    (tmp_path / "one.png").write_bytes(b"no image")
    with (pytest.warns(UserWarning, match="could not be read"),
          pytest.raises(ValueError, match="holds no image that can be read")):
        read(tmp_path)


def test_each_class_gives_the_same_share_of_its_images():
    labels = torch.tensor([0] * 40 + [1] * 40 + [2] * 20)[torch.randperm(100)]
    train, held_out = split(labels, 0.2)
    assert labels[held_out].bincount().tolist() == [8, 8, 4]
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(100))


def test_a_class_of_one_image_is_trained_not_measured():
    train, held_out = split(torch.tensor([0, 0, 0, 1, 0, 0, 0, 0]), 0.2)
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
    images = read(torch.rand(500, 1, 16, 16), None, budget=10)
    assert len(images.x_0) + len(images.held_out) == 10 + 64


def test_the_digest_follows_pixels_and_labels(image_folder):
    first = read(image_folder).digest
    assert read(image_folder).digest == first
    assert read(image_folder, None).digest != first
    PIL.Image.new("L", (16, 16)).save(image_folder / "left" / "0.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(image_folder).digest != first
