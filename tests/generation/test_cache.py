import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save

from dreamda_aug.errors import CacheError
from dreamda_aug.generation.cache import LatentCache, cache_key

KEY = cache_key(image="abc")


def tensors(value=1.0, size=100):
    return {"x_T": torch.full((size,), value, dtype=torch.float16)}


def test_what_was_put_is_got_back(tmp_path):
    assert LatentCache(tmp_path).get(KEY) is None and KEY not in LatentCache(tmp_path)
    LatentCache(tmp_path).put(KEY, tensors(2.0))
    found = LatentCache(tmp_path).get(KEY)
    assert torch.equal(found["x_T"], tensors(2.0)["x_T"]) and found["x_T"].dtype == torch.float16


def flip_bit(data):
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


DAMAGE = {
    "half": lambda data: data[:-10], "one bit": flip_bit, "no checksum": lambda _: save(tensors()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_never_used(tmp_path, damage):
    cache = LatentCache(tmp_path)
    cache.put(KEY, tensors())
    cache.path(KEY).write_bytes(DAMAGE[damage](cache.path(KEY).read_bytes()))
    with pytest.raises(CacheError, match=f"{cache.path(KEY)}: expected an inversion under this"):
        cache.get(KEY)


def test_a_file_under_another_key_is_refused(tmp_path):
    cache = LatentCache(tmp_path)
    cache.put(KEY, tensors())
    other = cache_key(image="other")
    cache.path(other).parent.mkdir(exist_ok=True)
    os.rename(cache.path(KEY), cache.path(other))
    with pytest.raises(CacheError, match="expected an inversion under this key"):
        cache.get(other)


def test_the_budget_holds_for_all_writers_together(tmp_path):
    """Each writer has its own object, as processes have, and sees what all of them have written."""
    LatentCache(tmp_path).put(KEY, tensors(size=5000))
    size = LatentCache(tmp_path).info().bytes
    caches, largest = [LatentCache(tmp_path, max_bytes=6 * size) for _ in range(8)], []

    def write(number):
        for i in range(12):
            caches[number].put(cache_key(writer=number, i=i), tensors(size=5000))
            largest.append(caches[number].info().bytes)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert 4 * size < max(largest) <= 6 * size
    LatentCache(tmp_path, max_bytes=size // 2).put(KEY, tensors(size=5000))
    assert LatentCache(tmp_path).info().files == 1  # what alone is too large is kept alone


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
    left = [key in cache for key in keys]
    assert left[0] and not left[1] and not left[2]
    assert cache.info().bytes <= 4 * size


WRITER = """
import sys, torch
from dreamda_aug.generation.cache import LatentCache, cache_key
cache = LatentCache(sys.argv[1])
print("started", flush=True)
n = 0
while True:
    key = cache_key(image=n % 7)
    cache.put(key, {"x_T": torch.full((20000,), float(n))})
    assert cache.get(key) is not None
    n += 1
"""


def test_kill_at_any_moment_leaves_a_readable_cache_also_with_two_writers(tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for writer in writers:
        writer.stdout.readline()
    cache = LatentCache(tmp_path)
    for writer in writers:
        time.sleep(0.4)
        assert writer.poll() is None
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        found = [cache.get(cache_key(image=n)) for n in range(7)]
        assert any(f is not None for f in found)  # and none raised


def test_a_pipe_in_the_place_of_the_count_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".bytes")
    LatentCache(tmp_path, max_bytes=10**6).put(KEY, tensors())
    assert int((tmp_path / ".bytes").read_text()) == LatentCache(tmp_path).info().bytes


def test_a_budget_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_bytes must be an integer >= 1, got 0"):
        LatentCache(tmp_path, max_bytes=0)
