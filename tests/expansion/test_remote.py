"""Expansions in places that fsspec knows, here its own memory."""

import sys
from pathlib import Path

import fsspec
import pytest
import torch
from expansion.folders import once_per_batch
from pipelines import pixel_pipeline
from torch.utils.data import TensorDataset
from torchvision.datasets import FakeData

from dreamda_aug import AugmentedDataset, Synthesizer
from dreamda_aug.cli.main import main
from dreamda_aug.errors import ExpansionError, StorageError
from dreamda_aug.expansion import remote
from dreamda_aug.expansion.expansion import Expansion
from dreamda_aug.expansion.manifest import read_manifest
from dreamda_aug.expansion.metadata import read_metadata
from dreamda_aug.expansion.output import LocalFolder, OutputFolder
from dreamda_aug.expansion.regeneration import regenerate
from dreamda_aug.expansion.remote import RemoteFolder, open_folder
from dreamda_aug.expansion.stats import read_stats
from dreamda_aug.models.unet import PixelModel
from dreamda_aug.report.contents import write_report
from dreamda_aug.report.publishing import push


@pytest.fixture
def place():
    fs = fsspec.filesystem("memory")
    yield "memory://bucket/out"
    fs.rm("/bucket", recursive=True)


@pytest.fixture(autouse=True)
def bucket():
    fsspec.filesystem("memory").makedirs("/bucket", exist_ok=True)


@pytest.fixture(scope="module", params=["folder", "webdataset"])
def expansion(request):
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(5, 1, 16, 16), torch.tensor([0, 1, 1, 0, 1]))
    synthesizer = Synthesizer(PixelModel(pixel_pipeline()), "paper", steps=2, cache=None,
                              batch_size=4)
    expansion = Expansion(data, synthesizer, 2, image_format=request.param, shard_samples=8)
    expansion.maker.make = once_per_batch(expansion.maker.make)
    return expansion


@pytest.fixture(scope="module")
def local(expansion, tmp_path_factory):
    root = tmp_path_factory.mktemp("local") / "out"
    expansion.run(root)
    return {str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*") if path.is_file()}


def content(url):
    fs, root = fsspec.core.url_to_fs(url)
    return {path[len(root) + 1:]: fs.cat_file(path) for path in fs.find(root)}


def test_files_are_those_of_a_local_folder(expansion, local, place):
    summary = expansion.run(place)
    assert summary.whole and content(place) == local
    again = expansion.run(RemoteFolder(place))
    assert again.made == 0 and summary.root == again.root == place


def test_the_root_of_a_local_folder_is_its_path(expansion, tmp_path):
    assert expansion.run(str(tmp_path / "out")).root == tmp_path / "out"


def test_a_url_that_was_made_a_path_is_refused_before_anything_is_written(
    expansion, place, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for broken in (Path(place), str(Path(place))):
        with pytest.raises(ValueError, match="out_dir must be a path on this machine, got the URL "
                                             f"'{place}'; give a URL as text"):
            expansion.run(broken)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("read", [
    read_metadata, lambda root: next(read_manifest(root)), read_stats, write_report,
    lambda root: regenerate(root, "00000000_0000"), lambda root: push(root, "user/name"),
    lambda root: AugmentedDataset.from_folder(FakeData(4), root),
])
@pytest.mark.parametrize("kind", [str, Path])
def test_who_reads_local_datasets_alone_says_so_of_a_url(read, kind):
    with pytest.raises(ValueError, match="the dataset's folder must be a path on this machine, got "
                                         "the URL 's3://bucket/out'; copy the dataset to this"):
        read(kind("s3://bucket/out"))


class Killed(BaseException):
    pass


def test_whoever_is_killed_between_any_two_files_goes_on_to_the_same_result(
    expansion, local, place, monkeypatch
):
    calls = [0, 0]

    def counted(name):
        plain = getattr(RemoteFolder, name)

        def method(self, *arguments, **options):
            calls[0] += 1
            if calls[0] == calls[1]:
                raise Killed
            return plain(self, *arguments, **options)

        return method

    for name in ("write", "create", "remove", "remove_folder"):
        monkeypatch.setattr(RemoteFolder, name, counted(name))
    kills = 0
    for last in range(1, 100):
        calls[:] = 0, last
        fs, root = fsspec.core.url_to_fs(place)
        if fs.exists(root):
            fs.rm(root, recursive=True)
        try:
            expansion.run(place)
        except Killed:
            kills += 1
            calls[1] = 0
            assert expansion.run(place).whole
        assert content(place) == local, f"killed at the {last}th step"
        if last > calls[0] and not calls[1] == 0:
            break
    assert kills > 8


def test_what_breaks_off_while_it_is_put_together_is_never_seen(place):
    folder = RemoteFolder(place)

    def parts():
        yield b"half"
        raise Killed

    with pytest.raises(Killed):
        folder.write("a/b", parts())
    assert not folder.exists("a/b") and folder.names() == []
    folder.write("a/b", [b"old"])
    with pytest.raises(Killed):
        folder.write("a/b", parts())
    assert folder.open("a/b").read() == b"old"


def test_large_files_go_over_the_disk(place, monkeypatch):
    monkeypatch.setattr(remote, "_IN_MEMORY", 10)
    folder = RemoteFolder(place)
    folder.write("large", [b"0123456789", b"abc"])
    assert folder.open("large").read() == b"0123456789abc"


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path, place):
    """Both kinds must do the same."""
    return LocalFolder(tmp_path / "out") if request.param == "local" else RemoteFolder(place)


def test_a_remote_folder_does_what_a_local_one_does(folder):
    assert isinstance(folder, OutputFolder)
    folder.check()
    assert folder.names() == [] and folder.names("no") == [] and not folder.exists("x")
    with pytest.raises(FileNotFoundError):
        folder.open("x")
    folder.write("sub/x", [b"1", b"2"])
    folder.write("y", [])
    assert folder.names() == ["sub", "y"] and folder.names("sub") == ["x"]
    assert folder.exists("sub") and folder.open("sub/x").read() == b"12"
    with pytest.raises(FileNotFoundError):
        folder.open("sub")
    folder.create("z", b"first")
    folder.create("z", b"second")
    assert folder.open("z").read() == b"first"
    with folder.claim("lock") as mine:
        assert mine
    folder.remove("z")
    folder.remove("z")
    folder.remove_folder("sub")
    folder.remove_folder("sub")
    assert not folder.exists("z") and not folder.exists("sub")
    folder.tidy()
    folder.set_aside()
    assert folder.names() == []
    aside = open_folder(f"{folder}.old1")
    assert aside.open("y").read() == b""


def test_a_file_in_the_place_of_the_folder_is_refused(place):
    fsspec.filesystem("memory").pipe_file("/bucket/out", b"file")
    with pytest.raises(ExpansionError, match="memory://bucket/out: expected a folder, found a fi"):
        RemoteFolder(place).check()


def test_a_store_that_refuses_is_named(place, monkeypatch):
    folder = RemoteFolder(place)

    def refuse(*arguments, **options):
        raise PermissionError("no access")

    monkeypatch.setattr(type(folder._fs), "pipe_file", refuse)
    with pytest.raises(StorageError, match=r"bucket/out/x: could not be written \(no access\)"):
        folder.write("x", [b""])


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ImportError, match=r"pip install 'dreamda_aug\[remote\]'"):
        RemoteFolder("s3://bucket/out")
    with pytest.raises(ValueError, match="nowhere"):
        RemoteFolder("nowhere://bucket/out")
    with pytest.raises(ValueError, match="must name a folder in the place"):
        RemoteFolder("memory://")


def test_the_command_takes_a_url(place, tmp_path, capsys):
    assert main(["expand", "bundled", "--out", place, "--limit", "2", "--ratio", "1", "--preset",
                 "paper", "--set", "steps=2", "--device", "cpu", "--no-calibrate"]) == 0
    assert capsys.readouterr().out == f"{place}: 2 synthetic images\n"
    assert "manifest.jsonl" in content(place)
