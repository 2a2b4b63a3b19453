import io
import json
import sys
import types

import PIL.Image
import pytest
import torch
from torch.utils.data import Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder

from dreamda_aug.expansion import ExpansionError, open_source
from dreamda_aug.inputs.hubs import HuggingFaceImages
from dreamda_aug.inputs.sources import DatasetSource


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.png", "b/deep/1.PNG", "a/10.jpg", "a/9.jpg"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("L", (4, 4)).save(path)
    (tmp_path / "train" / "a" / "notes.txt").write_text("")
    return tmp_path / "train"


def test_a_folder_lists_what_image_folder_lists_in_the_same_order(folder):
    source, reference = open_source(folder), ImageFolder(folder)
    assert source.classes == reference.classes and source.labels == reference.targets
    assert [str(folder / path) for path in source.paths] == [path for path, _ in reference.samples]
    assert source.open(0).size == (4, 4) and not source.problems


def test_planning_opens_no_image_and_the_digest_follows_names_sizes_and_labels(
    folder, monkeypatch
):
    monkeypatch.setattr(PIL.Image, "open", lambda *_: pytest.fail("an image was opened"))
    digest = open_source(folder).digest()
    assert open_source(folder).digest() == digest
    (folder / "a" / "9.jpg").write_bytes(b"other size")
    changed = open_source(folder).digest()
    (folder / "a" / "9.jpg").rename(folder / "a" / "8.jpg")
    assert len({digest, changed, open_source(folder).digest()}) == 3


def test_lists_give_paths_and_labels_and_repeated_entries_are_counted(folder):
    rows = [("b/2.png", "dog"), ("a/9.jpg", "cat"), ("b/2.png", "dog")]
    (folder / "list.csv").write_text("path,label\n" + "".join(f"{p},{c}\n" for p, c in rows))
    (folder / "list.jsonl").write_text(
        "".join(json.dumps({"file_name": p, "class": c}) + "\n" for p, c in rows))
    for name in ("list.csv", "list.jsonl"):
        source = open_source(folder / name)
        assert source.classes == ["cat", "dog"] and source.labels == [1, 0]
        assert source.paths == ["b/2.png", "a/9.jpg"] and source.open(0).size == (4, 4)
        assert source.skipped == 1 and "1 images are listed more than once" in source.problems[0]
    named = open_source(folder / "list.csv", class_names=["dog", "cat", "fox"])
    assert named.labels == [0, 1] and named.problems[1] == "class 'fox' has no images"


def test_labels_of_a_list_may_be_numbers(folder):
    (folder / "list.csv").write_text("path,label\na/9.jpg,10\nb/2.png,9\n")
    assert open_source(folder / "list.csv").classes == ["9", "10"]
    names = [str(i) for i in range(11)]
    assert open_source(folder / "list.csv", class_names=names).labels == [10, 9]
    with pytest.raises(ValueError, match="label 9 is outside the 3 class names"):
        open_source(folder / "list.csv", class_names=["a", "b", "c"])


@pytest.mark.parametrize("name, text, message", [
    ("x.csv", "path\na.png\n", "line 2: expected a column 'label', found 'path'"),
    ("x.csv", "path,label\na.png,1\na.png,2\n", "line 3: a.png is listed as '1' and as '2'"),
    ("x.csv", "path,label\na.png,\n", "line 2: the label must be text or an integer, got ''"),
    ("x.csv", "path,label\n", "the list holds no images"),
    ("x.jsonl", '{"path": 3, "label": "a"}\n', "line 1: the path must be text, got 3"),
    ("x.jsonl", "[1]\n", "line 1: expected a JSON object, got"),
    ("x.jsonl", "{\n", "line 1: expected JSON"),
    ("x.txt", "a", "expected a folder, a .csv or a .jsonl list"),
])
def test_a_bad_list_is_refused_with_file_and_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, ExpansionError), match=message) as caught:
        open_source(tmp_path / name)
    assert name in str(caught.value)


def test_what_is_not_there_is_said_with_what_could_be(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder of class folders, a .csv"):
        open_source(tmp_path / "nothing")
    with pytest.raises(ValueError, match="expected one sub-folder per class, found none"):
        open_source(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match="the class folders hold no image files"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match="torchvision has no dataset 'Nothing'"):
        open_source("torchvision:Nothing")
    with pytest.raises(ValueError, match="MNIST could not be opened in .*download=True"):
        open_source("torchvision:MNIST", data_root=tmp_path)
    with pytest.raises(ValueError, match="split of MNIST must be 'train' or 'test', got 'val'"):
        open_source("torchvision:MNIST", split="val")
    with pytest.raises(TypeError, match="source must be a path, a name or a map-style dataset"):
        open_source(iter([]))


def test_torchvision_datasets_open_by_name():
    source = open_source("torchvision:FakeData")
    assert source.open(0).size == (224, 224) and source.spec["spec"] == "torchvision:FakeData"


def test_a_dataset_gives_its_untransformed_images():
    data = FakeData(4, (1, 6, 5), num_classes=3, transform=lambda image: 1 / 0)
    source = DatasetSource(data)
    assert source.open(1).size == (5, 6) and len(source.labels) == 4
    assert source.paths[1] == "#1" and source.spec is None
    tensors = TensorDataset(torch.rand(3, 3, 4, 4), torch.tensor([0, 2, 2]))
    source = DatasetSource(Subset(tensors, [2, 0]))
    assert source.labels == [2, 0] and source.open(0).mode == "RGB"
    assert source.classes == ["0", "1", "2"] and source.problems == ["class '1' has no images"]
    with pytest.raises(ValueError, match="labels must be integers, got"):
        DatasetSource(TensorDataset(torch.rand(1, 1, 4, 4), torch.rand(1)))
    with pytest.raises(ValueError, match="the source holds no images"):
        DatasetSource(TensorDataset(torch.rand(0, 1, 4, 4), torch.rand(0)))


def test_bundled_images_open_by_name():
    assert len(open_source("bundled").labels) == 200
    assert len(open_source("bundled", split="test").labels) == 300


class Image:
    """Stands for ``datasets.Image``."""


class ClassLabel:
    names = ["cat", "dog"]


class Table:
    """What is used of ``datasets.Dataset``."""

    features = {"picture": Image(), "species": ClassLabel()}

    def __len__(self):
        return 2

    def __getitem__(self, key):
        if isinstance(key, str):
            return [1, 0]
        buffer = io.BytesIO()
        PIL.Image.new("L", (3, 3), key).save(buffer, "PNG")
        return {"picture": PIL.Image.open(buffer), "species": [1, 0][key]}


def test_hugging_face_tables_open_by_name(monkeypatch):
    asked = []
    module = types.SimpleNamespace(
        load_dataset=lambda *args, **kwargs: asked.append((args, kwargs)) or Table())
    monkeypatch.setitem(sys.modules, "datasets", module)
    source = open_source("hf:user/pets", split="validation")
    assert asked == [(("user/pets",), {"split": "validation", "cache_dir": None})]
    assert source.classes == ["cat", "dog"] and source.labels == [1, 0]
    assert source.open(1).getpixel((0, 0)) == 1
    with pytest.raises(ValueError, match="an Image and a ClassLabel column was expected"):
        HuggingFaceImages(types.SimpleNamespace(features={"text": str}))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="need an extra package"):
        open_source("hf:user/pets")
