"""Datasets on the hub: what is uploaded, and that it can be read from there."""

import shutil
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from pipelines import pixel_pipeline
from torch.utils.data import TensorDataset

from dreamda_aug import Synthesizer
from dreamda_aug.cli.main import main
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion import expand
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.models.unet import UNetModel
from dreamda_aug.report import publishing, write_report
from dreamda_aug.report.publishing import push

CLASSES = ["zebra", "test", "without images"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    torch.manual_seed(0)
    source = open_seed_images(TensorDataset(torch.rand(4, 1, 16, 16), torch.tensor([0, 1, 1, 0])),
                         class_names=CLASSES)
    synthesizer = Synthesizer(UNetModel(pixel_pipeline()), "paper", steps=2, cache=None)
    root = tmp_path_factory.mktemp("made") / "out"
    expand(source, root, synthesizer, 2)
    write_report(root)
    return root


@pytest.fixture
def hub(tmp_path):
    """The hub's client, with its arguments; what is uploaded lies in ``tmp_path / "hub"``."""
    def upload(*, repo_id, folder_path, repo_type, ignore_patterns, commit_message):
        files = [path for path in Path(folder_path).rglob("*") if path.is_file()]
        for path in filter_repo_objects(files, ignore_patterns=ignore_patterns, key=lambda each: (
                each.relative_to(folder_path).as_posix())):
            there = tmp_path / "hub" / path.relative_to(folder_path)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, there)

    found = create_autospec(HfApi, instance=True)
    found.upload_folder.side_effect = upload
    return found


def test_everything_but_the_page_with_real_images_is_there(dataset, hub, tmp_path):
    assert push(dataset, "me/clothes", private=True, api=hub) == (
        "https://huggingface.co/datasets/me/clothes")
    hub.create_repo.assert_called_once_with(
        "me/clothes", repo_type="dataset", private=True, exist_ok=True)
    here = {path.relative_to(dataset) for path in dataset.rglob("*") if path.is_file()}
    there = {path.relative_to(tmp_path / "hub") for path in (tmp_path / "hub").rglob("*")
             if path.is_file()}
    assert there == here - {Path("report.html")}


def test_the_repository_is_read_with_class_names_and_one_split(dataset, hub, tmp_path):
    datasets = pytest.importorskip("datasets")
    push(dataset, "me/clothes", api=hub)
    table = datasets.load_dataset(str(tmp_path / "hub"), cache_dir=str(tmp_path / "cache"))
    assert list(table) == ["train"]  # and not a split called "test", as a class is
    labels = table["train"].features["label"]
    assert labels.names == CLASSES and len(table["train"]) == 8
    for row in table["train"]:
        assert labels.int2str(row["label"]) == row["class_name"]


def test_too_many_files_for_the_hub_are_refused(dataset, hub, monkeypatch):
    monkeypatch.setattr(publishing, "_MAX_FILES", 3)
    with pytest.raises(ValueError, match="takes 3 files in a folder.*--image-format webdataset"):
        push(dataset, "me/clothes", api=hub)


def test_only_finished_datasets_are_uploaded(dataset, hub, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected an expanded dataset"):
        push(tmp_path, "me/clothes", api=hub)
    shutil.copytree(dataset, tmp_path / "half")
    (tmp_path / "half" / "manifest.jsonl").unlink()
    with pytest.raises(ExpansionError, match="expected a finished dataset"):
        push(tmp_path / "half", "me/clothes", api=hub)


def test_the_command_prints_the_address(dataset, hub, monkeypatch, capsys):
    monkeypatch.setattr(publishing, "HfApi", lambda: hub)
    assert main(["push", str(dataset), "me/clothes"]) == 0
    assert capsys.readouterr().out == "https://huggingface.co/datasets/me/clothes\n"
    assert hub.create_repo.call_args.kwargs["private"] is None
