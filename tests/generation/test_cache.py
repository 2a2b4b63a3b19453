import os

import pytest
import torch
from safetensors.torch import save

from dreamda_aug.errors import CacheError
from dreamda_aug.generation.cache import LatentCache, cache_key

KEY = cache_key(image="abc")


def tensors(value=1.0, size=100):
    return {"x_T": torch.full((size,), value, dtype=torch.float16)}


def test_what_was_put_is_got_back(tmp_path):
    assert LatentCache(tmp_path).get(KEY) is None
    LatentCache(tmp_path).put(KEY, tensors(2.0))
    found = LatentCache(tmp_path).get(KEY)
    assert torch.equal(found["x_T"], tensors(2.0)["x_T"]) and found["x_T"].dtype == torch.float16


DAMAGE = {
    "half": lambda data: data[:-10], "no checksum": lambda _: save(tensors()),
    "one bit": lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
    "of another key": lambda data: data,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_misplaced_file_is_named_and_never_used(tmp_path, damage):
    cache, key = LatentCache(tmp_path), cache_key(other=1) if damage == "of another key" else KEY
    for each in (KEY, key):
        cache.put(each, tensors())
    cache.path(key).write_bytes(DAMAGE[damage](cache.path(KEY).read_bytes()))
    with pytest.raises(CacheError, match=f"{cache.path(key)}: expected an inversion under this"):
        cache.get(key)


def test_the_budget_holds_however_many_files_are_written(tmp_path):
    LatentCache(tmp_path / "one").put(KEY, tensors(size=5000))
    size, = LatentCache(tmp_path / "one").sizes()
    cache, totals = LatentCache(tmp_path / "full", max_bytes=100 * size), []
    for i in range(150):
        cache.put(cache_key(i=i), tensors(size=5000))
        totals.append(sum(cache.sizes()))
    assert 95 * size < max(totals) <= 100 * size
    other = LatentCache(tmp_path / "full", max_bytes=50 * size)
    other.put(KEY, tensors(size=5000))  # sees what others wrote
    assert sum(other.sizes()) <= 50 * size
    LatentCache(tmp_path / "full", max_bytes=size // 2).put(KEY, tensors(size=5000))
    assert other.sizes() == [size]  # what alone is too large is kept alone


def test_the_least_recently_used_files_go_first(tmp_path):
    size = 0
    keys = [cache_key(image=i) for i in range(5)]
    cache = LatentCache(tmp_path)
    for age, key in enumerate(keys):
        cache.put(key, tensors(age))
        size = cache.path(key).stat().st_size
        os.utime(cache.path(key), (1000 + age, 1000 + age))
    cache.get(keys[0])  # used just now
    LatentCache(tmp_path, max_bytes=4 * size).put(cache_key(image="new"), tensors())
    left = [cache.path(key).exists() for key in keys]
    assert left[0] and not left[1] and not left[2]
    assert sum(cache.sizes()) <= 4 * size
