"""Resuming: what was written is compared with its digests, and seed images with what they were."""

import os
import shutil
import signal

import PIL.Image
import PIL.ImageOps
import pytest
from expansion.folders import ObjectsToSecond, content, in_child, once_per_batch

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.expansion import Expansion


@pytest.fixture(scope="module", params=["folder", "webdataset"])
def expansion(request, train, synthesizer):
    # what the filter objects to fills skipped.jsonl, beside the unreadable image
    found = Expansion(train, synthesizer, 3, image_format=request.param, shard_samples=8,
                      filters=[ObjectsToSecond("seed_index")])
    found.maker.make = once_per_batch(found.maker.make)  # how it is put down is what is tested
    return found


@pytest.fixture(scope="module")
def reference(expansion, tmp_path_factory):
    root = tmp_path_factory.mktemp("reference") / "out"
    stats = expansion.run(root).stats
    assert stats.dropped["second"] == 3 and sum(stats.unreadable.values()) == 3 and stats.made > 5
    return content(root)


@pytest.fixture
def out(expansion, reference, tmp_path):
    expansion.run(tmp_path / "out")
    return tmp_path / "out"


def images(out):
    return sorted(path for path in out.rglob("*") if path.suffix in (".png", ".tar"))


def interrupt(expansion, out, after):
    def stop(progress):
        if progress.made >= 4 * after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        expansion.run(out, progress=stop)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(
    expansion, reference, tmp_path, monkeypatch
):
    """Each run dies at a later change to a file than the one before, whose files it finds."""
    def die(left):
        def killer(real):
            def call(*args, **kwargs):
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)
            return call

        for name in ("replace", "unlink", "remove", "rmdir"):
            monkeypatch.setattr(os, name, killer(getattr(os, name)))
        expansion.run(tmp_path / "out")

    for kills in range(60):
        child = in_child(lambda count=3 * kills + 2: die(count))
        child.join()
        assert child.exitcode in (0, -signal.SIGKILL)
        if child.exitcode == 0:
            break
    assert kills >= 5 and content(tmp_path / "out") == reference


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "one bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1])
    + data[len(data) // 2 + 1:],
    "other": lambda data: b"something else",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_image_is_made_again(expansion, reference, out, damage):
    path = images(out)[1]
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    summary = expansion.run(out)
    assert 0 < summary.made < 18
    assert any("not as they had been written" in warning for warning in summary.warnings)
    assert content(out) == reference


def edited(data):
    return data.replace(b'"label":0', b'"label":1', 1).replace(b"0.3", b"0.4", 1).replace(
        b"flagged", b"Flagged", 1)


RECORDS = {
    "cut": DAMAGE["cut"], "edited": edited,
    "doubled": lambda data: data.splitlines(keepends=True)[0] + data,
    "reversed": lambda data: b"".join(data.splitlines(keepends=True)[::-1]),
    "without its first line": lambda data: data.partition(b"\n")[2],
}


@pytest.mark.parametrize("damage", RECORDS)
@pytest.mark.parametrize("name", ["manifest.jsonl", "skipped.jsonl", "SHA256SUMS"])
def test_a_damaged_record_is_written_again(expansion, reference, out, name, damage):
    before = (out / name).read_bytes()
    (out / name).write_bytes(after := RECORDS[damage](before))
    summary = expansion.run(out)
    assert summary.whole
    if name != "SHA256SUMS":
        assert after == before or any(name in warning for warning in summary.warnings)
        assert content(out) == reference
    else:
        assert content(out)["manifest.jsonl"] == reference["manifest.jsonl"]


@pytest.mark.parametrize("names", [
    ["README.md", "manifest.jsonl"], ["skipped.jsonl"], ["SHA256SUMS"],
    ["manifest.jsonl", "skipped.jsonl", "SHA256SUMS"],
], ids=str)
def test_what_was_deleted_is_written_again(expansion, reference, out, names):
    for name in names:
        (out / name).unlink()
    assert expansion.run(out).whole
    assert content(out) == reference


def test_a_card_that_a_user_wrote_on_is_kept(expansion, reference, out):
    (out / "README.md").write_text("mine")
    images(out)[0].unlink()
    expansion.run(out)
    assert content(out) == reference | {"README.md": b"mine"}


@pytest.mark.parametrize("damage", RECORDS)
def test_a_damaged_record_of_a_batch_is_made_again(expansion, reference, tmp_path, damage):
    out = tmp_path / "out"
    interrupt(expansion, out, after=3)
    records = sorted((out / ".dreamda").glob("*.jsonl"))
    assert len(records) == 3
    (out / ".dreamda" / "._00000000.jsonl").touch()  # as macOS leaves on shared disks
    records[1].write_bytes(RECORDS[damage](records[1].read_bytes()))
    # in another order, or twice, they are the same records
    assert expansion.run(out).made == 18 - (3 if damage in ("reversed", "doubled") else 2) * 4
    assert content(out) == reference


def test_a_finished_dataset_is_only_read(expansion, reference, out):
    times = {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]}
    assert expansion.run(out).made == 0
    assert {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]} == times


def test_each_process_checks_its_share_before_it_makes_images(expansion, reference, out):
    images(out)[0].write_bytes(b"")  # of batch 0, which is the first process's
    seen = []
    second = expansion.run(out, shard=(1, 2))
    assert second.whole
    first = expansion.run(out, shard=(0, 2), progress=seen.append)
    stages = [progress.stage for progress in seen]
    assert stages == sorted(stages) and stages.count("checking") == 3
    assert first.made + second.made >= 4  # a shard of both is mended by the one that comes first
    expansion.run(out)
    assert content(out) == reference


# seed images that change

@pytest.fixture
def mine(train, tmp_path):
    mine = shutil.copytree(train, tmp_path / "mine")
    PIL.Image.open(mine / "cat" / "1.png").save(mine / "cat" / "1.png", compress_level=0)
    return mine


def again(mine, synthesizer, **options):
    return Expansion(mine, synthesizer, 3, **options)


def other_pixels(path):
    """Other pixels in a file of the same size, since it is not compressed."""
    size = path.stat().st_size
    PIL.ImageOps.invert(PIL.Image.open(path)).save(path, compress_level=0)
    assert path.stat().st_size == size


@pytest.mark.parametrize("finished", [True, False])
def test_a_seed_image_of_equal_size_that_changed_is_refused_by_name(
    mine, synthesizer, tmp_path, finished
):
    out = tmp_path / "out"
    if finished:
        again(mine, synthesizer).run(out)
    else:
        interrupt(again(mine, synthesizer), out, after=2)
    before = content(out)
    other_pixels(mine / "cat" / "1.png")
    with pytest.raises(ExpansionError, match=r"seed image cat/1.png was changed since .*--new"):
        again(mine, synthesizer).run(out)
    assert content(out) == before


def test_an_unreadable_seed_image_that_was_mended_is_refused_by_name(mine, synthesizer, tmp_path):
    again(mine, synthesizer).run(tmp_path / "out")
    (mine / "dog" / "2.png").write_bytes(b"NO IMAGE")
    assert again(mine, synthesizer).run(tmp_path / "out").whole  # is none now either
    shutil.copy(mine / "dog" / "1.png", mine / "dog" / "2.png")
    with pytest.raises(ExpansionError, match=r"seed image dog/2.png was changed since"):
        again(mine, synthesizer).run(tmp_path / "out")


def test_a_seed_image_of_a_dataset_object_that_changed_is_refused_too(synthesizer, tmp_path):
    rows = [(PIL.Image.new("L", (16, 16), value), value % 2) for value in range(4)]
    again(rows, synthesizer).run(tmp_path / "out")
    rows[2] = (PIL.Image.new("L", (16, 16), 99), 0)
    with pytest.raises(ExpansionError, match=r"seed image #2 was changed since"):
        again(rows, synthesizer).run(tmp_path / "out")


def test_a_seed_image_that_changes_during_the_run_is_refused(mine, synthesizer, tmp_path):
    """Image 1 has replicas in batches 0 and 1."""
    def change(progress):
        if progress.made == 4:
            other_pixels(mine / "cat" / "1.png")

    with pytest.raises(ExpansionError, match="seed image cat/1.png was changed while"):
        again(mine, synthesizer).run(tmp_path / "out", progress=change)
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
