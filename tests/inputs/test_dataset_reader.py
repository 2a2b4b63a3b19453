"""Datasets of every kind without their image transform, and what they would have returned."""

import warnings

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from dreamda_aug.inputs.dataset_reader import (
    DatasetReader,
    find_classes,
    find_targets,
    occurrences,
)
from dreamda_aug.inputs.samples import read_sample
from dreamda_aug.inputs.seed_images import open_seed_images

GREY = PIL.Image.new("L", (4, 4), 100)
OTHER = PIL.Image.new("L", (4, 4), 7)


def value(image):
    return np.asarray(image).flat[0]


def brighter(image):
    return PIL.Image.fromarray(np.asarray(image) + 50)


class Data(Dataset):
    """Two grey images; ``sample`` gets the dataset, a copy included, an image and a label."""

    transform = staticmethod(lambda image: image)

    def __init__(self, transform=None, sample=None):
        self.targets = [0, 1]
        self.make = sample or (lambda data, label: (data.transform(GREY), label))
        if transform is not None:
            self.transform = transform

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.make(self, self.targets[index])


class Method(Data):
    def transform(self, image):
        return brighter(image)


def named(image):
    return {"image": image + 50}


def together(image, label):
    return brighter(image), label + 10


def whole(sample):
    return {**sample, "image": brighter(sample["image"]), "seen": True}


def triples(data, label):
    return data.transform(GREY), label, "more"


class Wrapper(Dataset):
    """Around another dataset, with the index behind each sample."""

    def __init__(self, base, transform=None):
        self.base, self.transform = base, transform

    def __len__(self):
        return len(self.base)

    def __getitem__(self, index):
        image, label = self.base[index]
        return self.transform(image) if self.transform else image, label, index


class TransformedSubset(Subset):
    """With a transform of its own."""

    def transform(self, image):
        return brighter(image)

    def __getitem__(self, index):
        image, label = self.dataset[self.indices[index]]
        return self.transform(image), label

    def __getitems__(self, indices):  # torch wants both
        return [self[index] for index in indices]


KINDS = {
    "image": Data(brighter), "method": Method(), "triples": Data(brighter, triples),
    "named": Data(named, lambda data, label: (
        data.transform(image=np.asarray(GREY))["image"], label)),  # as albumentations is called
    "together": Data(together, lambda data, label: data.transform(GREY, label)),
    "whole sample": Data(whole, lambda data, label: data.transform(
        {"image": GREY, "label": label, "id": 3})),
    "one class only": Data(brighter, lambda data, label: (
        data.transform(GREY) if label else GREY, label)),
    "dicts": Data(brighter, lambda data, label: {
        "image": data.transform(GREY), "label": label, "name": "x"}),
    "part": Subset(Data(brighter, triples), [1, 0]),
    "parts": ConcatDataset([Data(brighter), Data(brighter, triples)]),
    "subset": ConcatDataset([TransformedSubset(Data(), [1])]), "wrapper": Wrapper(Data(brighter)),
    "both": Wrapper(Subset(Data(brighter), [1, 0]), brighter),
}


def parts_of(sample):
    """A sample with its image as a number."""
    if isinstance(sample, dict):
        return {key: int(value(part)) if key == "image" else part for key, part in sample.items()}
    return (int(value(sample[0])), *sample[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_is_untransformed_and_the_transform_runs_as_the_dataset_runs_it(kind):
    dataset = KINDS[kind]
    reader = DatasetReader(dataset)
    for index in range(len(dataset)):
        sample = reader.read(index)
        assert value(sample.image) == 100
        # with its own image: what the dataset gives
        assert parts_of(sample.put(sample.image, sample.label)) == parts_of(dataset[index])
        other = np.asarray(OTHER) if kind == "named" else OTHER
        expected = {"one class only": 7 + 50 * index, "both": 107}.get(kind, 57)
        made = read_sample(sample.put(other, sample.label), index)
        assert value(made.image) == expected
        assert made.label == read_sample(dataset[index], index).label
        assert parts_of(reader.put_back(index, other, sample.label)) == parts_of(
            sample.put(other, sample.label))
        assert value(sample.image) == 100


def test_the_dataset_itself_stays_as_it_is():
    for dataset in (Method(), Wrapper(Data(brighter))):
        DatasetReader(dataset).read(0)
        assert value(dataset[0][0]) == 150
    assert "transform" not in vars(Method())


def test_a_wrapper_that_hides_its_random_transform_is_a_warning():
    class Hidden(Wrapper):
        def __getitem__(self, index):
            image, label, _ = super().__getitem__(index)
            return torch.rand(1, 4, 4), label

    with pytest.warns(UserWarning, match="gives sample 0 other pixels each time it is read"):
        open_seed_images(Hidden(Data()), labels="later")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_seed_images(Wrapper(Data(lambda image: torch.rand(1, 4, 4))), labels="later")


def test_a_transform_that_cannot_be_replaced_or_is_called_otherwise_is_refused():
    class Fixed(Data):
        @property
        def transform(self):
            return brighter

    with pytest.raises(TypeError, match="must let its transform be set, and Fixed does not"):
        DatasetReader(Fixed())
    with pytest.raises(TypeError, match="samples with masks cannot be augmented"):
        DatasetReader(Data(brighter, lambda data, label: (data.transform(
            image=np.asarray(GREY), mask=np.asarray(OTHER))["image"], label))).read(0)
    with pytest.raises(TypeError, match="must call its transform with the image, .*got 3 argum"):
        DatasetReader(Data(brighter, lambda data, label: data.transform(GREY, GREY, GREY))).read(0)


class Changed(Data):
    target_transform = staticmethod(lambda label: label + 100)

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, self.target_transform(label)


def test_labels_are_those_of_the_samples():
    data = FakeData(4, (1, 4, 4), 3, target_transform=lambda label: label + 10)
    assert DatasetReader(data).labels(range(4)) == [data[i][1] for i in range(4)]
    kept = Subset(ConcatDataset([Data(), Changed()]), [3, 1])
    assert DatasetReader(kept).labels((0, 1)) == [kept[0][1], kept[1][1]] == [101, 1]
    assert find_targets(kept) == [1, 1]
    bare = Wrapper(Data())
    bare.labels = ["zero", "one", "two"]  # names, not those of the samples
    assert DatasetReader(bare).labels((1, 0)) == [1, 0]


def test_parts_name_their_classes_alike_or_are_refused():
    data = [TensorDataset(torch.rand(1, 1, 4, 4), torch.tensor([0])) for _ in range(4)]
    for part, names in zip(data, (["cat", "dog"], ["cat"], ["dog", "cat"]), strict=False):
        part.classes = names
    assert find_classes(ConcatDataset([data[1], data[0], data[3]])) == ["cat", "dog"]
    both = ConcatDataset([data[0], Subset(data[2], [0])])
    with pytest.raises(ValueError, match=r"name their classes differently, \['cat', 'dog'\] and "
                                         r"\['dog', 'cat'\]|\['dog', 'cat'\] and \['cat', 'dog"):
        open_seed_images(both)
    assert open_seed_images(both, class_names=["a", "b"]).classes == ["a", "b"]


def test_a_sample_that_is_there_again_is_counted():
    data = TensorDataset(torch.zeros(3, 1, 4, 4), torch.arange(3))
    other = TensorDataset(torch.zeros(3, 1, 4, 4), torch.arange(3))
    assert occurrences(data) == [0, 0, 0]
    assert occurrences(Subset(data, [0, 2, 0, 0])) == [0, 0, 1, 2]
    assert occurrences(ConcatDataset([data, other, Subset(data, [2])])) == [0] * 6 + [1]


@pytest.fixture
def table():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "id": datasets.Value("int64"),
                                  "species": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [GREY, OTHER], "id": [5, 6], "species": [1, 0]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_hugging_face_rows_are_read_and_keep_their_form(table):
    reader = DatasetReader(Subset(table, [0, 1]))
    sample = reader.read(0)
    assert value(sample.image) == 100 and sample.label == 1
    assert parts_of(sample.put(OTHER, sample.label)) == {"image": 7, "id": 5, "species": 1}
    assert reader.labels((0, 1)) == [1, 0] and find_classes(table) == ["cat", "dog"]
    with pytest.raises(TypeError, match="must have no format, .* got 'torch'"):
        DatasetReader(table.with_format("torch"))


@pytest.mark.parametrize("how", ["with_transform", "set_transform"])
def test_the_transform_of_hugging_face_rows_runs_after(table, how):
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])

    def transform(batch):
        return {"pixel_values": [to_tensor(image) for image in batch["image"]],
                "labels": batch["species"]}

    changed = getattr(table, how)(transform)
    dataset = table if changed is None else changed
    sample = DatasetReader(dataset).read(0)
    assert value(sample.image) == 100
    made, real = sample.put(sample.image, sample.label), dataset[0]
    assert made.keys() == real.keys() == {"pixel_values", "labels"} and made["labels"] == 1
    assert torch.equal(made["pixel_values"], real["pixel_values"])
    assert sample.put(OTHER, sample.label)["pixel_values"].max() < 0.03
