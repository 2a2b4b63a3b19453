"""Expansions on Ray: the same files, whatever happens to the processes."""

import os
import signal
import sys
import time

import pytest
from expansion.folders import content, write_images
from pipelines import pixel_pipeline

from dreamda_aug import Synthesizer
from dreamda_aug.cli.main import main
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.expansion import Expansion
from dreamda_aug.expansion.filters import GuardEvents

ray = pytest.importorskip("ray")
from dreamda_aug.expansion.engines import RayEngine  # noqa: E402


@pytest.fixture(scope="module")
def cluster():
    os.environ.setdefault("RAY_DISABLE_MEMORY_MONITOR", "1")
    # the workers of a pool would be started ahead, one for each CPU, and are not needed
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False,
             configure_logging=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pixel_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "train", {"cat": 4, "dog": 4})


def killer(mark):
    """A filter that kills its process once; made here, so that it goes elsewhere by value."""
    class Killer(GuardEvents):
        def measure(self, batch):
            if 5 in batch.seed_index and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().measure(batch)

    return Killer()


def test_two_processes_one_of_them_killed_write_the_files_of_one(
    cluster, model, train, tmp_path
):
    options = dict(preset="paper", steps=3, cache=None, batch_size=2, device="cpu")
    mark = tmp_path / "killed"
    filters = [killer(mark)]

    def expansion():
        return Expansion(train, Synthesizer(str(model), **options), 6, filters=filters,
                         keep_flagged=True)

    mark.touch()
    expansion().run(tmp_path / "one")
    mark.unlink()
    summary = expansion().run(tmp_path / "two", engine=RayEngine(workers=2))
    assert summary.whole and summary.made == 48 and mark.exists()
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_an_error_in_a_process_is_raised_here_as_it_was(cluster, model, tmp_path):
    mine = write_images(tmp_path / "train", {"cat": 2})
    (mine / "cat" / "1.png").write_bytes(b"no picture")
    work = Expansion(mine, Synthesizer(str(model), "paper", steps=2, cache=None, device="cpu"), 2,
                     strict=True)
    with pytest.raises(ExpansionError, match="^strict: cat/1.png: "):
        work.run(tmp_path / "out", engine=RayEngine(workers=1))


def test_a_batch_that_kills_every_process_is_named(cluster):
    done = []
    with pytest.raises(ExpansionError, match="batch 1: its process died 3 times"):
        # functions made here go to other processes by value
        RayEngine(workers=1).run(
            lambda: lambda batch: os._exit(1) if batch == 1 else None, range(3), done.append, 1)
    assert done == [0, 2]


@pytest.mark.parametrize("arguments, message", [
    (["--workers", "2"], "--workers belongs to --engine ray"),
    (["--engine", "ray", "--shard", "0/2"], "share out the work in two ways"),
])
def test_options_that_do_not_go_together_are_refused(arguments, message, tmp_path, capsys):
    assert main(["expand", "bundled", "--out", str(tmp_path / "o"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'dreamda_aug\[ray\]'"):
        RayEngine()
    assert main(["expand", "bundled", "--out", str(tmp_path / "o"), "--engine", "ray"]) == 2
    assert "dreamda_aug[ray]" in capsys.readouterr().err


def test_an_address_where_nobody_is_costs_an_error_and_no_wait(monkeypatch):
    address = "ray://127.0.0.1:1"
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    started = time.perf_counter()
    with pytest.raises(ExpansionError, match=f"Ray at {address} could not be reached"):
        RayEngine(address).run(None, [], None, 1)
    assert time.perf_counter() - started < 15
