"""Images of several epochs on disk, and in which order they are made."""

import pytest
import torch

from dreamda_aug.datasets.pool import ImagePool
from dreamda_aug.datasets.prefetch import missing
from dreamda_aug.errors import StorageError


@pytest.fixture
def pool(tmp_path):
    return ImagePool(tmp_path, images=5, replicas=2, images_per_shard=2)


def fill(pool, shard, epoch, dtype=torch.uint8):
    values = {(image, replica): torch.full((1, 1, 2, 2), 10 * image + replica + epoch, dtype=dtype)
              for image in pool.images_of(shard) for replica in range(pool.replicas)}
    pool.write(shard, epoch, values)


def test_the_newest_image_that_is_not_newer_than_the_epoch_is_read(pool):
    for epoch in (3, 10, 7):
        fill(pool, 1, epoch)
    assert [list(pool.images_of(shard)) for shard in range(pool.shards)] == [[0, 1], [2, 3], [4]]
    assert pool.epochs(1) == [3, 7, 10] and pool.epochs(0) == []
    for asked, found in ((3, 3), (6, 3), (9, 7), (10, 10), (99, 10)):
        epoch, values = pool.read(3, 1, asked)
        assert epoch == found and torch.equal(values, torch.full((1, 1, 2, 2), (31 + found) / 255))
    assert pool.read(3, 1, 2) is None and pool.read(0, 0, 99) is None


def test_images_of_more_than_8_bits_come_back_as_they_are(pool):
    values = torch.rand(1, 3, 4, 4)
    pool.write(2, 0, {(4, 0): values, (4, 1): 1 - values})
    assert torch.equal(pool.read(4, 0, 0)[1], values)
    assert torch.equal(pool.read(4, 1, 0)[1], 1 - values)


def test_of_epochs_that_are_over_the_newest_stays(pool):
    for epoch in (1, 2, 4, 5):
        fill(pool, 0, epoch)
    pool.drop_older(0, 3)
    assert pool.epochs(0) == [2, 4, 5]
    pool.drop_older(0, 1)
    assert pool.epochs(0) == [2, 4, 5]


def test_a_half_written_file_is_no_image_and_a_damaged_one_is_named(pool, tmp_path):
    fill(pool, 0, 1)
    place = next(tmp_path.glob("*/*"))
    (place / ".2.safetensors.0123.dreamda-tmp").write_bytes(b"half")
    assert pool.epochs(0) == [1]
    pool.remove_temporaries()
    assert [path.name for path in place.iterdir()] == ["1.safetensors"]
    (place / "1.safetensors").write_bytes(b"damaged")
    with pytest.raises(StorageError, match=r"1\.safetensors: expected a safetensors file"):
        pool.read(0, 0, 1)


def test_the_current_epoch_comes_first_and_in_it_the_oldest_images():
    ready = [{4, 5}, {3}, set(), {5, 6}]
    assert list(missing(ready, 5, 1)) == [(5, 2), (5, 1), (6, 2), (6, 1), (6, 0)]
    assert list(missing([{5}], 5, 0)) == []
