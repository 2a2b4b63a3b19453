"""Datasets of every kind without their image transform, and what they would have returned."""

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from dreamda_aug.inputs.rows import read_row
from dreamda_aug.inputs.untransformed import (
    Untransformed,
    kept_labels_of,
    labels_of,
    occurrences_of,
)

GREY = PIL.Image.new("L", (4, 4), 100)
OTHER = PIL.Image.new("L", (4, 4), 7)


def value(image):
    return np.asarray(image).flat[0]


def brighter(image):
    return PIL.Image.fromarray(np.asarray(image) + 50)


class Base:
    """Two grey images, with what a subclass does to them."""

    def __init__(self, transform=None):
        if transform is not None:
            self.transform = transform
        self.targets = [0, 1]

    def __len__(self):
        return 2


class Asks(Base):
    transform = None

    def __getitem__(self, index):
        image = GREY if self.transform is None else self.transform(GREY)
        return image, self.targets[index]


class Unconditional(Base):
    def __getitem__(self, index):
        return self.transform(GREY), self.targets[index]


class Method(Base):
    def transform(self, image):
        return brighter(image)

    def __getitem__(self, index):
        return self.transform(GREY), self.targets[index]


class Named(Base):
    """As albumentations is called."""

    def __getitem__(self, index):
        return self.transform(image=np.asarray(GREY))["image"], self.targets[index]


class Together(Base):
    def __getitem__(self, index):
        return self.transform(GREY, self.targets[index])


class WholeSample(Base):
    def __getitem__(self, index):
        return self.transform({"image": GREY, "label": self.targets[index], "id": index})


class OneClassOnly(Base):
    """Transforms images of class 1 alone."""

    def __getitem__(self, index):
        image = self.transform(GREY) if index == 1 else GREY
        return image, self.targets[index]


class Triples(Base):
    def __getitem__(self, index):
        return self.transform(GREY), self.targets[index], index


class Dicts(Base):
    def __getitem__(self, index):
        return {"image": self.transform(GREY), "label": self.targets[index], "name": str(index)}


def named(image):
    return {"image": image + 50}


def together(image, label):
    return brighter(image), label + 10


def whole(sample):
    return {**sample, "image": brighter(sample["image"]), "seen": True}


KINDS = {
    "asks": Asks(brighter), "unconditional": Unconditional(brighter), "method": Method(),
    "named": Named(named), "together": Together(together), "whole sample": WholeSample(whole),
    "one class only": OneClassOnly(brighter), "triples": Triples(brighter),
    "dicts": Dicts(brighter), "part": Subset(Triples(brighter), [1, 0]),
    "parts": ConcatDataset([Asks(brighter), Unconditional(brighter)]),
}


def parts_of(sample):
    """A sample with its image as a number."""
    if isinstance(sample, dict):
        return {key: int(value(part)) if key == "image" else part for key, part in sample.items()}
    return (int(value(sample[0])), *sample[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_is_untransformed_and_the_transform_runs_as_the_dataset_runs_it(kind):
    dataset = KINDS[kind]
    raw = Untransformed(dataset)
    for index in range(len(dataset)):
        sample = raw.sample(index)
        assert value(sample.image) == 100 and value(raw[index][0]) == 100
        # with its own image: what the dataset gives
        assert parts_of(sample.finish(sample.image)) == parts_of(dataset[index])
        other = np.asarray(OTHER) if kind == "named" else OTHER
        expected = 7 if kind == "one class only" and index == 0 else 57
        made = read_row(sample.finish(other), index)
        assert value(made.image) == expected
        assert made.label == read_row(dataset[index], index).label
        assert value(sample.image) == 100


def test_the_dataset_itself_stays_as_it_is():
    dataset = Method()
    Untransformed(dataset).sample(0)
    assert "transform" not in vars(dataset) and value(dataset[0][0]) == 150
    plain = Asks(brighter)
    Untransformed(plain)
    assert plain.transform is brighter


def test_a_transform_that_cannot_be_replaced_is_refused():
    class Fixed(Base):
        @property
        def transform(self):
            return brighter

        def __getitem__(self, index):
            return self.transform(GREY), 0

    with pytest.raises(TypeError, match="must let its transform be set, and Fixed does not"):
        Untransformed(Fixed())


def test_a_transform_that_is_called_otherwise_is_refused():
    class Odd(Base):
        def __getitem__(self, index):
            return self.transform(GREY, GREY, GREY), 0

    with pytest.raises(TypeError, match="must call its transform with the image, .*got 3 argum"):
        Untransformed(Odd(brighter)).sample(0)


@pytest.mark.parametrize("sample, message", [
    ((GREY,), "is a tuple of length 1"),
    (GREY, "is a Image"),
    ((GREY, GREY, 0), "single label, sample 0 has a Image in second place"),
    ((GREY, torch.tensor([1, 2]), 0), "single label, sample 0 has a Tensor"),
    ({"image": GREY}, "one 'image' and a 'label', sample 0 has 'image' .Image"),
    ({"a": GREY, "b": GREY, "label": 0}, "one 'image' and a 'label'"),
    ({"image": "a.png", "label": 0}, "one 'image' and a 'label', sample 0 has 'image' .str"),
])
def test_samples_without_an_image_and_a_label_are_refused(sample, message):
    with pytest.raises(ValueError, match=message):
        read_row(sample, 0)


@pytest.mark.parametrize("sample", [
    {"img": GREY, "fine_label": 3, "coarse_label": 1}, {"image": GREY, "mask": GREY, "label": 3},
    {"file": "a", "picture": np.zeros((4, 4, 3), np.uint8), "target": 3},
    (GREY, 3, "a", 0), [GREY, np.int64(3), 0], (GREY, torch.tensor([3]), None),
])
def test_image_and_label_are_found_and_replaced(sample):
    row = read_row(sample, 0)
    assert int(row.label) == 3
    again = read_row(row.put(OTHER, 4), 0)
    assert again.image is OTHER and again.label == 4
    assert len(row.put(OTHER, 4)) == len(sample)


def test_labels_are_those_of_the_samples():
    data = FakeData(4, (1, 4, 4), 3, target_transform=lambda label: label + 10)
    assert labels_of(Untransformed(data)) == [data[i][1] for i in range(4)]
    kept = Subset(ConcatDataset([Asks(), Changed()]), [3, 1])
    assert labels_of(Untransformed(kept)) == [kept[0][1], kept[1][1]] == [101, 1]
    assert kept_labels_of(Untransformed(kept)) == [1, 1]


class Changed(Asks):
    target_transform = staticmethod(lambda label: label + 100)

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, self.target_transform(label)


def test_a_sample_that_is_there_again_is_counted():
    data = TensorDataset(torch.zeros(3, 1, 4, 4), torch.arange(3))
    other = TensorDataset(torch.zeros(3, 1, 4, 4), torch.arange(3))
    assert occurrences_of(data) == [0, 0, 0]
    assert occurrences_of(Subset(data, [0, 2, 0, 0])) == [0, 0, 1, 2]
    assert occurrences_of(ConcatDataset([data, other, Subset(data, [2])])) == [0] * 6 + [1]


@pytest.fixture
def table():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "id": datasets.Value("int64"),
                                  "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [GREY, OTHER], "id": [5, 6], "label": [1, 0]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_hugging_face_rows_are_read_and_keep_their_form(table):
    raw = Untransformed(table)
    sample = raw.sample(0)
    assert value(sample.image) == 100 and sample.label == 1
    assert parts_of(sample.finish(OTHER)) == {"image": 7, "id": 5, "label": 1}
    assert labels_of(raw) == [1, 0]


@pytest.mark.parametrize("how", ["with_transform", "set_transform"])
def test_the_transform_of_hugging_face_rows_runs_after(table, how):
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def transform(batch):
        return {"pixel_values": [to_tensor(image) for image in batch["image"]],
                "labels": batch["label"]}

    changed = getattr(table, how)(transform)
    dataset = table if changed is None else changed
    sample = Untransformed(dataset).sample(0)
    assert value(sample.image) == 100
    made, real = sample.finish(sample.image), dataset[0]
    assert made.keys() == real.keys() == {"pixel_values", "labels"} and made["labels"] == 1
    assert torch.equal(made["pixel_values"], real["pixel_values"])
    assert sample.finish(OTHER)["pixel_values"].max() < 0.03


def test_a_format_of_hugging_face_rows_is_refused(table):
    with pytest.raises(TypeError, match="must have no format, .* got 'torch'"):
        Untransformed(table.with_format("torch"))
