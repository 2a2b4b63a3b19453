"""Class numbers of an expanded dataset are those of its source, in every reader."""

import numpy as np
import PIL.Image
import pytest
import torch
from expansion.folders import ObjectsToSecond, write_images
from torch.utils.data import TensorDataset
from torchvision.datasets import ImageFolder

from dreamda_aug import AugmentedDataset, Synthesizer
from dreamda_aug.expansion import expand, read_manifest
from dreamda_aug.expansion.manifest import read_metadata
from dreamda_aug.inputs.seed_images import open_seed_images


def absent(train):
    for path in (train / "b").iterdir():
        path.unlink()
    return {}


@pytest.mark.parametrize("without", [
    absent, lambda train: {"filters": [ObjectsToSecond("labels")]},
    lambda train: {"expansion_ratio": {"b": 0}},
], ids=["absent", "filtered", "ratio 0"])
def test_a_class_without_images_keeps_its_number(synthesizer, tmp_path, without):
    train, out = write_images(tmp_path / "train", {"a": 2, "b": 2, "c": 1}), tmp_path / "out"
    summary = expand(train, out, synthesizer, **{"expansion_ratio": 2} | without(train))
    assert any("ImageFolder(out, allow_empty=True)" in warning for warning in summary.warnings)
    assert summary.stats.images.keys() == {"a", "c"}
    source = ImageFolder(train, allow_empty=True).class_to_idx
    assert list(read_metadata(out)["source"]["classes"]) == list(source) == ["a", "b", "c"]
    found = ImageFolder(out, allow_empty=True)
    assert found.class_to_idx == source and set(found.targets) == {0, 2}
    with pytest.raises(FileNotFoundError, match="no valid file for the classes b"):
        ImageFolder(out)
    again = open_seed_images(out)
    assert again.classes == ["a", "b", "c"] and set(again.labels) == {0, 2}
    datasets = pytest.importorskip("datasets")
    table = datasets.load_dataset("imagefolder", data_dir=str(out), split="train",
                                  cache_dir=str(tmp_path / "cache"))
    assert {(row["class_name"], row["label"]) for row in table} == {("a", 0), ("c", 2)}
    assert table.features["label"].names == ["a", "b", "c"]


def test_numbers_without_names_are_the_classes_of_the_model(class_folder, tmp_path):
    """As they are for an `AugmentedDataset` of the same images."""
    synthesizer = Synthesizer(class_folder, "paper", steps=2, cache=None, batch_size=2,
                              device="cpu")
    data = TensorDataset(torch.randint(256, (2, 1, 16, 16), dtype=torch.uint8),
                         torch.tensor([2, 0]))
    expand(data, tmp_path / "out", synthesizer, 1)
    lines = list(read_manifest(tmp_path / "out"))
    assert [line.condition for line in lines] == [2, 0]
    live = AugmentedDataset(data, synthesizer, 1)
    for line, (image, label) in zip(lines, live.__getitems__([2, 3]), strict=True):
        stored = PIL.Image.open(tmp_path / "out" / line.file)
        assert label == line.label and np.array_equal(np.array(stored), image[0].numpy())
