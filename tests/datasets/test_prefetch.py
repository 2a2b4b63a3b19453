"""Images that a process makes ahead: the same as without it, and there even when it dies."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pipelines import pixel_pipeline
from torch.utils.data import DataLoader, TensorDataset

from dreamda_aug import AugmentedDataset, Synthesizer
from dreamda_aug.datasets import prefetch
from dreamda_aug.datasets.prefetch import ImagePool
from dreamda_aug.errors import GenerationError
from dreamda_aug.models.unet import UNetModel

COUNT, K = 5, 2


def test_the_newest_image_that_is_not_newer_than_the_epoch_is_read_and_stays(tmp_path):
    pool = ImagePool(tmp_path, images=5, images_per_shard=2)
    assert list(map(list, pool.shards)) == [[0, 1], [2, 3], [4]]
    for epoch in (3, 10, 7):
        pool.write(1, epoch, {(3, 1): torch.full((1, 1, 2, 2), epoch, dtype=torch.uint8)})
    assert pool.epochs(1) == [3, 7, 10] and pool.epochs(0) == []
    for asked, found in ((3, 3), (6, 3), (9, 7), (99, 10)):
        epoch, values = pool.read(3, 1, asked)
        assert epoch == found and torch.equal(values, torch.full((1, 1, 2, 2), found / 255))
    assert pool.read(3, 1, 2) is None and pool.read(0, 0, 99) is None
    pool.drop_older(1, 8)
    assert pool.epochs(1) == [7, 10]
    deep = torch.rand(1, 3, 4, 4)  # more than 8 bits
    pool.write(2, 0, {(4, 0): deep})
    assert torch.equal(pool.read(4, 0, 0)[1], deep)


def dataset(model, **options):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (COUNT, 1, 16, 16), generator=generator).to(torch.uint8)
    synthesizer = Synthesizer(model, "paper", steps=2, noise_scale=8.0, cache=None, batch_size=4)
    return AugmentedDataset(TensorDataset(images, torch.arange(COUNT)), synthesizer, K,
                            with_origin=True, **options)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"


@pytest.fixture(scope="module")
def model():
    return UNetModel(pixel_pipeline())


@pytest.fixture(scope="module")
def prefetching(model):
    data = dataset(model, prefetch_epochs=1)
    data.wait(120)
    yield data
    data.close()


def epochs(data):
    pool = data._prefetcher.pool
    return [pool.epochs(shard) for shard in range(len(pool.shards))]


def test_images_are_those_that_are_made_without_it_also_in_workers(prefetching, model):
    plain = dataset(model)
    for epoch in (1, 0):
        for data in (plain, prefetching):
            data.set_epoch(epoch)
        until(lambda epoch=epoch: all(epoch in each for each in epochs(prefetching)))
        for mates in prefetching._prefetcher.pool.shards:
            # the batch that the process made: last bits depend on its shape
            places = [COUNT + mate * K + replica for mate in mates for replica in range(K)]
            for (one, label, origin), (other, *rest) in zip(
                    plain.__getitems__(places), prefetching.__getitems__(places)):
                assert torch.equal(one, other) and one.dtype == torch.uint8
                assert rest == [label, origin] and origin.epoch == epoch
        assert (prefetching.freshness.fresh, prefetching.freshness.made) == (10, 0)
    loader = DataLoader(prefetching.synthetic, batch_size=3, num_workers=2)
    assert sum([origin.epoch.tolist() for _, _, origin in loader], []) == [0] * COUNT * K
    assert prefetching.freshness.fresh == 20  # workers count together
    assert prefetching.synthesizer.sampler.inversions == 0


def test_a_process_that_dies_is_started_again_with_the_next_epoch(prefetching, caplog):
    prefetching.set_epoch(1)
    until(lambda: all(2 in each for each in epochs(prefetching)))
    killed, far = prefetching._prefetcher._process, 50
    killed.kill()
    killed.join()
    prefetching.set_epoch(far)
    assert "died; its own error stands above" in caplog.text
    served = [prefetching[COUNT + number][2].epoch for number in range(COUNT * K)]
    assert set(served) == {2}  # what was there is served, and says so
    told = prefetching.freshness
    assert (told.fresh, told.older, told.made, told.mean_age) == (0, COUNT * K, 0, far - 2)
    assert f"epoch {far}: 10 synthetic images served, 0 fresh, 10 of earlier epochs" in str(told)
    until(lambda: epochs(prefetching) == [[far, far + 1]] * 3)  # no more is kept
    assert prefetching[COUNT][2].epoch == far


def test_what_is_not_there_yet_is_made_on_demand_and_the_end_leaves_nothing(model):
    data, plain = dataset(model, prefetch_epochs=2), dataset(model)
    folder, process = data._prefetcher.pool.folder, data._prefetcher._process.pid
    assert torch.equal(data[COUNT][0], plain[COUNT][0])  # the process is still starting
    assert data.freshness.made == 1
    del data
    assert not alive(process) and not folder.exists()
    data = dataset(model, prefetch_epochs=2)
    folder = data._prefetcher.pool.folder
    data.close()
    assert not folder.exists() and data.freshness is None
    assert torch.equal(data[COUNT][0], plain[COUNT][0])


def test_where_samples_are_replaced_each_replica_is_made_once_and_kept(model):
    data = dataset(model, prefetch_epochs=2, replace=1.0)
    data.wait(120)
    for epoch in (1, 7):
        data.set_epoch(epoch)
        assert all(origin == (True, label, origin.replica, 0)
                   for _, label, origin in data.__getitems__(range(COUNT)))
        told = data.freshness
        assert (told.fresh, told.older, told.made) == (COUNT, 0, 0)
    assert epochs(data) == [[0]] * 3
    data.close()


SCRIPT = """
import os, signal, sys, torch
from dreamda_aug.datasets.prefetch import Prefetcher

def make(images, epoch):
    return {(image, 0): torch.zeros(1, 1, 2, 2) for image in images}

if __name__ == "__main__":
    epoch = torch.zeros((), dtype=torch.int64).share_memory_()
    prefetcher = Prefetcher(make, 2, 1, epoch, 1)
    print(prefetcher._process.pid, prefetcher.pool.folder, flush=True)
    prefetcher.wait(200)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["at its end", "killed"])
def test_a_program_leaves_neither_process_nor_folder(how, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "script.py", how], capture_output=True,
                          text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == (-signal.SIGKILL if how == "killed" else 0), done.stderr
    assert "died" not in done.stderr
    process, folder = done.stdout.split()
    until(lambda: not alive(int(process)))
    assert not Path(folder).exists()


def test_a_dataset_that_cannot_be_sent_to_a_process_is_refused(model):
    class Local(TensorDataset):
        pass

    data = Local(torch.rand(2, 1, 16, 16), torch.zeros(2))
    synthesizer = Synthesizer(model, "paper", steps=2, cache=None)
    with pytest.raises(TypeError, match="with prefetch_epochs the dataset is sent to ano"):
        AugmentedDataset(data, synthesizer, 1, prefetch_epochs=1)


@pytest.mark.parametrize("seconds, wait, error, message", [
    (0, 60, GenerationError, "process that makes synthetic images ahead died"),
    (60, 0, TimeoutError, "0 of 3 parts of the pool are ready after 0 s")])
def test_a_process_that_makes_nothing_is_not_waited_for(
    model, monkeypatch, seconds, wait, error, message
):
    # forked, and quickly
    monkeypatch.setattr(torch.multiprocessing, "get_context",
                        lambda method: multiprocessing.get_context("fork"))
    monkeypatch.setattr(prefetch, "_produce", lambda *arguments: time.sleep(seconds))
    data = dataset(model, prefetch_epochs=1)
    with pytest.raises(error, match=message):
        data.wait(wait)
    assert data[COUNT][2].epoch == 0 and data.freshness.made == 1
    data.close()
