"""Expansions in places that fsspec opens, here its own memory."""

from pathlib import Path

import fsspec
import pytest
import torch
from expansion.folders import content
from torch.utils.data import TensorDataset
from torchvision.datasets import FakeData

from dreamda_aug import AugmentedDataset
from dreamda_aug.cli.main import main
from dreamda_aug.expansion import Expansion, read_manifest, regenerate
from dreamda_aug.expansion.card import read_stats
from dreamda_aug.expansion.manifest import read_metadata
from dreamda_aug.report import write_report
from dreamda_aug.report.publishing import push


@pytest.fixture(scope="module", params=["folder", "webdataset"])
def expansion(request, synthesizer):
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(5, 1, 16, 16), torch.tensor([0, 2, 2, 0, 2]))
    return Expansion(data, synthesizer, 2, image_format=request.param, shard_samples=8)


@pytest.fixture(scope="module")
def local(expansion, tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "out"
    assert expansion.run(str(out)).out == out
    return content(out)


def remote_content(url):
    fs, root = fsspec.core.url_to_fs(url)
    return {path[len(root) + 1:]: fs.cat_file(path) for path in fs.find(root)}


def test_files_are_those_of_a_local_folder(expansion, local, url):
    summary = expansion.run(url)
    assert summary.whole and remote_content(url) == local
    again = expansion.run(f"{url}/")
    assert again.made == 0 and summary.out == again.out == url


@pytest.mark.parametrize("read", [
    read_metadata, lambda out: next(read_manifest(out)), read_stats, write_report,
    lambda out: regenerate(out, "00000000_0000"), lambda out: push(out, "user/name"),
    lambda out: AugmentedDataset.from_folder(FakeData(4), out),
])
def test_readers_of_local_datasets_refuse_a_url(read):
    with pytest.raises(ValueError, match="the dataset's folder must be a path on this machine, "
                                         "got the URL 's3://bucket/out'; copy the dataset to"):
        read(Path("s3://bucket/out"))


def test_the_command_takes_a_url(url, capsys):
    assert main(["expand", "bundled", "--out", url, "--limit", "2", "--expansion-ratio", "1",
                 "--preset", "paper", "--set", "steps=2", "--device", "cpu", "--no-calibrate"]) == 0
    assert capsys.readouterr().out == f"{url}: 2 synthetic images\n"
    assert "manifest.jsonl" in remote_content(url)
