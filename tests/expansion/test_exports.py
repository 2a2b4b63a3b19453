"""Expanded datasets in the programs that people read datasets with."""

import sys
import warnings

import PIL.Image
import pytest
import torch
from torch.utils.data import TensorDataset
from torchvision.datasets import ImageFolder

from dreamda_aug.expansion import expand, read_manifest
from dreamda_aug.expansion.layouts import folder_names
from dreamda_aug.inputs.seed_images import open_seed_images

# not in alphabetical order, and one with what no file name bears
CLASSES = ["zebra", "T-shirt/top", "ant"]
LABELS = [0, 1, 2, 2, 1, 0]


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    return open_seed_images(TensorDataset(torch.rand(6, 1, 16, 16), torch.tensor(LABELS)),
                       class_names=CLASSES)


@pytest.fixture(scope="module")
def folder(source, synthesizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "out"
    expand(source, root, synthesizer, 2)
    return root


@pytest.fixture(scope="module")
def shards(source, synthesizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("made") / "out"
    expand(source, root, synthesizer, 2, image_format="webdataset", shard_samples=8)
    return root


def test_image_folder_keeps_the_labels(folder):
    found = ImageFolder(folder)
    assert found.classes == ["0_zebra", "1_T-shirt_top", "2_ant"]
    assert found.targets == [line.label for line in sorted(
        read_manifest(folder), key=lambda line: line.file)] and len(found) == 12


@pytest.mark.parametrize("has_pyarrow, of", [
    (True, ["imagefolder"]), (True, []), (False, []),
], ids=["as imagefolder", "by its card", "by its card, written without pyarrow"])
def test_hugging_face_joins_real_and_synthetic_images_by_class(
    source, synthesizer, tmp_path, monkeypatch, has_pyarrow, of
):
    """Columns are called as the stock script for image classification has them."""
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        if not has_pyarrow:
            patch.setitem(sys.modules, "pyarrow", None)
        expand(source, out, synthesizer, 2, only_classes=["zebra", "T-shirt/top"])
    assert (out / "metadata.parquet").exists() == has_pyarrow != (out / "metadata.jsonl").exists()
    data_dir = {"data_dir": str(out)} if of else {}
    table = datasets.load_dataset(*of or [str(out)], **data_dir, split="train",
                                  cache_dir=str(tmp_path / "cache"))
    labels = datasets.ClassLabel(names=CLASSES)
    assert table.features["label"] == labels and len(table) == 8
    for row in table:
        assert CLASSES[row["label"]] == row["class_name"] and row["synthetic"] is True
        assert row["image"].size == (16, 16)
    real = datasets.Dataset.from_dict(
        {"image": [PIL.Image.new("L", (16, 16))] * 3, "label": [0, 1, 2]},
        features=datasets.Features({"image": datasets.Image(), "label": labels}))
    both = datasets.concatenate_datasets([real, table])
    assert both.features["label"] == labels
    assert both["label"][:] == [0, 1, 2, *table["label"]]


def test_webdataset_streams_the_shards(shards):
    webdataset = pytest.importorskip("webdataset")
    urls = sorted(map(str, shards.glob("shard-*.tar")))
    assert len(urls) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = webdataset.WebDataset(urls, shardshuffle=False).decode("pil")
        rows = list(stream.to_tuple("png", "cls", "json"))
    assert [label for _, label, _ in rows] == [line.label for line in read_manifest(shards)]
    assert all(CLASSES[label] == line["class_name"] and image.size == (16, 16)
               for image, label, line in rows)


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_croissant_is_valid_and_its_records_are_the_manifest(kind, request):
    mlcroissant = pytest.importorskip("mlcroissant")
    root = request.getfixturevalue(kind)
    dataset = mlcroissant.Dataset(jsonld=str(root / "croissant.json"))
    assert not dataset.metadata.issues.errors
    found = [(record["samples/label"], record["samples/class_name"].decode())
             for record in dataset.records(record_set="samples")]
    assert found == [(line.label, line.class_name) for line in read_manifest(root)]
    text = (root / "croissant.json").read_text()
    assert str(root.parent) not in text and "synthetic" in text


def test_files_for_others_are_made_again_where_they_are_missing(
    source, synthesizer, folder, tmp_path
):
    whole = {name: (folder / name).read_bytes() for name in ("metadata.parquet", "croissant.json")}
    expand(source, tmp_path / "out", synthesizer, 2)
    for name in whole:
        (tmp_path / "out" / name).unlink()
    expand(source, tmp_path / "out", synthesizer, 2)
    for name, data in whole.items():
        assert (tmp_path / "out" / name).read_bytes() == data


def test_class_folders_have_names_that_every_file_system_bears_and_numbers_where_order_needs_them():
    names = folder_names(["0123", "Größe", "T-shirt/top", "a\\b:c", "class", ".."])
    assert list(names.values()) == ["0123", "Größe", "T-shirt_top", "a_b_c", "class", "class_2"]
    assert list(folder_names(["T-shirt/top", "t-shirt_TOP"]).values())[1] == "t-shirt_TOP_2"
    assert list(folder_names(["COM7", "nul"]).values()) == ["COM7_2", "nul_2"]  # Windows' devices
    many = folder_names([f"class {i}" for i in range(11)])
    assert list(many.values())[1::9] == ["01_class 1", "10_class 10"]
