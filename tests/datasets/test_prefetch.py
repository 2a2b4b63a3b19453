"""Images that a process makes prefetching: the same as without it, and there even when it dies."""

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
from dreamda_aug.errors import GenerationError
from dreamda_aug.models.unet import PixelModel

COUNT, K = 5, 2


def dataset(model, **options):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (COUNT, 1, 16, 16), generator=generator).to(torch.uint8)
    synthesizer = Synthesizer(model, "paper", steps=2, noise_scale=8.0, cache=None, batch_size=4)
    return AugmentedDataset(TensorDataset(images, torch.arange(COUNT)), synthesizer, K,
                            with_origin=True, **options)


def until(condition, seconds=120):
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
    return PixelModel(pixel_pipeline())


@pytest.fixture(scope="module")
def prefetching(model):
    data = dataset(model, prefetch_epochs=1)
    data.wait(120)
    yield data
    data.close()


def ready(data, epoch):
    pool = data._prefetcher.pool
    return all(epoch in pool.epochs(shard) for shard in range(pool.shards))


def test_images_are_those_that_are_made_without_it(prefetching, model):
    plain = dataset(model)
    for epoch in (1, 0):
        for data in (plain, prefetching):
            data.set_epoch(epoch)
        until(lambda epoch=epoch: ready(prefetching, epoch))
        for shard in range(prefetching._prefetcher.pool.shards):
            # the batch that the producer made: last bits depend on its shape
            mates = prefetching._prefetcher.pool.images_of(shard)
            places = [COUNT + mate * K + replica for mate in mates for replica in range(K)]
            for (one, label, origin), (other, *rest) in zip(
                    plain.__getitems__(places), prefetching.__getitems__(places)):
                assert torch.equal(one, other) and one.dtype == torch.uint8
                assert rest == [label, origin] and origin.epoch == epoch
        assert (prefetching.freshness.fresh, prefetching.freshness.made) == (10, 0)


def test_workers_read_what_is_ready_and_count_together(prefetching):
    prefetching.set_epoch(0)
    prefetching.set_epoch(1)
    until(lambda: ready(prefetching, 1))
    inversions = prefetching.synthesizer.sampler.inversions
    loader = DataLoader(prefetching.synthetic, batch_size=3, num_workers=2)
    seen = [origin.epoch.tolist() for _, _, origin in loader]
    assert sum(seen, []) == [1] * COUNT * K
    assert prefetching.freshness.fresh == COUNT * K and prefetching.freshness.mean_age == 0
    assert prefetching.synthesizer.sampler.inversions == inversions


def test_a_producer_that_is_killed_is_started_again_and_nothing_is_lost(prefetching, caplog):
    prefetching.set_epoch(1)
    until(lambda: ready(prefetching, 1))
    killed, before = prefetching._prefetcher.producer, prefetching.freshness.restarts
    os.kill(killed, signal.SIGSTOP)  # from now on nothing new is made
    until(lambda: all(prefetching._prefetcher.pool.epochs(shard) for shard in range(3)))
    far = 50
    prefetching.set_epoch(far)
    os.kill(killed, signal.SIGKILL)
    served = [prefetching[COUNT + number][2].epoch for number in range(COUNT * K)]
    assert all(1 <= epoch <= 2 for epoch in served)  # what was there is served, and says so
    told = prefetching.freshness
    assert (told.older, told.made) == (COUNT * K, 0) and 48 <= told.mean_age <= 49
    assert f"epoch {far}: 10 synthetic images served, 0 fresh, 10 of earlier epochs" in str(told)
    until(lambda: prefetching.freshness.restarts > before)
    assert prefetching._prefetcher.producer != killed
    assert "died and is started again; training goes on with the 3 parts" in caplog.text
    until(lambda: ready(prefetching, far))
    assert prefetching[COUNT][2].epoch == far
    pool = prefetching._prefetcher.pool
    until(lambda: ready(prefetching, far + 1))
    assert all(pool.epochs(shard) == [far, far + 1] for shard in range(3))  # no more is kept


def test_what_is_not_there_yet_is_made_on_demand_and_the_end_leaves_nothing(model):
    data, plain = dataset(model, prefetch_epochs=2), dataset(model)
    folder, process = data._prefetcher.pool.folder, data._prefetcher.producer
    assert torch.equal(data[COUNT][0], plain[COUNT][0])  # the producer is still starting
    assert data.freshness.made == 1
    del data
    until(lambda: not alive(process))
    assert not folder.exists()
    data = dataset(model, prefetch_epochs=2)
    folder = data._prefetcher.pool.folder
    data.close()
    assert not folder.exists() and data.freshness is None
    assert torch.equal(data[COUNT][0], plain[COUNT][0])


def test_where_samples_are_replaced_each_replica_is_made_once_and_kept(model):
    data = dataset(model, prefetch_epochs=2, replace=1.0)
    until(lambda: ready(data, 0))
    data.wait(10)
    for epoch in (1, 7):
        data.set_epoch(epoch)
        assert all(origin == (True, label, origin.replica, 0)
                   for _, label, origin in data.__getitems__(range(COUNT)))
        told = data.freshness
        assert (told.fresh, told.older, told.made) == (COUNT, 0, 0)
    pool = data._prefetcher.pool
    assert all(pool.epochs(shard) == [0] for shard in range(pool.shards))
    data.close()


SCRIPT = """
import os, signal, sys, time, torch
from dreamda_aug.datasets.prefetch import Prefetcher

class Maker:
    def make_values(self, images, epoch):
        return {(image, 0): torch.zeros(1, 1, 2, 2) for image in images}

if __name__ == "__main__":
    epoch = torch.zeros((), dtype=torch.int64).share_memory_()
    prefetcher = Prefetcher(Maker(), 2, 1, epoch, 1, 1)
    print(prefetcher.producer, prefetcher.pool.folder, flush=True)
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
    assert "restart" not in done.stderr and "died" not in done.stderr
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


def die(*arguments):
    os._exit(1)


def test_a_producer_that_only_dies_is_given_up_and_images_are_made_on_demand(model, monkeypatch):
    # forked, and quickly
    monkeypatch.setattr(torch.multiprocessing, "get_context",
                        lambda method: multiprocessing.get_context("fork"))
    monkeypatch.setattr(prefetch, "produce", die)
    monkeypatch.setattr(prefetch, "PAUSE", 0.01)
    data = dataset(model, prefetch_epochs=1)
    with pytest.raises(TimeoutError, match="0 of 3 parts of the pool are there after 0 s"):
        data.wait(0)
    with pytest.raises(GenerationError, match="died 3 times without having made any"):
        data.wait(60)
    assert data[COUNT][2].epoch == 0 and data.freshness.made == 1
    assert data.freshness.restarts == 2
    data.close()


def test_no_process_is_started_by_a_daemonic_one(model, monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    with pytest.raises(GenerationError, match="make the AugmentedDataset in the main process"):
        dataset(model, prefetch_epochs=1)
