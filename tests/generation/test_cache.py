import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file

from dreamda_aug.errors import CacheError
from dreamda_aug.generation.cache import LatentCache, cache_key, estimate_bytes, format_bytes

KEY = cache_key(image="abc")


def tensors(value=1.0, size=100):
    return {"x_T": torch.full((size,), value, dtype=torch.float16)}


def test_what_was_put_is_got_back(tmp_path):
    LatentCache(tmp_path).put(KEY, tensors(2.0))
    found = LatentCache(tmp_path).get(KEY)
    assert torch.equal(found["x_T"], tensors(2.0)["x_T"]) and found["x_T"].dtype == torch.float16


def test_an_unknown_key_gives_none(tmp_path):
    assert LatentCache(tmp_path).get(KEY) is None
    assert KEY not in LatentCache(tmp_path)


def test_every_part_and_its_name_count_for_the_key():
    keys = {cache_key(a=1), cache_key(b=1), cache_key(a=2), cache_key(a="1"), cache_key(a=1, b=1)}
    assert len(keys) == 5


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def damage_bit(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def damage_foreign(path):
    save_file(tensors(), path)


def damage_text(path):
    path.write_text("not a tensor file at all")


def damage_version(path):
    path.write_bytes(path.read_bytes().replace(b'"format_version":"1"', b'"format_version":"0"'))


DAMAGES = {
    damage_truncate: "expected a safetensors file", damage_bit: "expected checksum",
    damage_foreign: "expected format 'dreamda-inversion', found None",
    damage_text: "expected a safetensors file",
    damage_version: "expected format_version '1', found '0'",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_file_is_named_and_never_used(tmp_path, damage):
    cache = LatentCache(tmp_path)
    cache.put(KEY, tensors())
    damage(cache.path(KEY))
    with pytest.raises(CacheError, match=DAMAGES[damage]) as caught:
        cache.get(KEY)
    assert str(cache.path(KEY)) in str(caught.value)
    rebuilding = LatentCache(tmp_path, on_damage="rebuild")
    assert rebuilding.get(KEY) is None
    assert not cache.path(KEY).exists()


def test_a_file_under_another_key_is_refused(tmp_path):
    cache = LatentCache(tmp_path)
    cache.put(KEY, tensors())
    other = cache_key(image="other")
    cache.path(other).parent.mkdir(exist_ok=True)
    os.rename(cache.path(KEY), cache.path(other))
    with pytest.raises(CacheError, match="expected key"):
        cache.get(other)


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


def test_the_estimate_is_close_to_the_real_size(tmp_path):
    cache = LatentCache(tmp_path)
    cache.put(KEY, {"x_T": torch.zeros(1, 28, 28).half(),
                    "residuals": torch.zeros(26, 1, 28, 28).half()})
    estimate = estimate_bytes((1, 28, 28), 25, 1)
    assert abs(estimate - cache.info().bytes) < 0.05 * estimate


def test_sizes_read_well():
    assert [format_bytes(n) for n in (512, 2_600_000, 3 * 10**12)] == ["512 B", "2.6 MB", "3.0 TB"]


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


@pytest.mark.parametrize("wrong, message", [
    (dict(max_bytes=0), "max_bytes must be an integer >= 1, got 0"),
    (dict(on_damage="ignore"), "on_damage must be 'error' or 'rebuild', got 'ignore'"),
])
def test_wrong_arguments_are_refused(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        LatentCache(tmp_path, **wrong)
