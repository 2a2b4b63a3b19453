"""Going on: what was written is compared with its digests, and seed images with what they were."""

import io
import shutil

import numpy as np
import PIL.Image
import pytest
from expansion.folders import ObjectsToSecond, content, once_per_batch

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


DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "last byte gone": lambda data: data[:-1],
    "empty": lambda data: b"",
    "one bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1])
    + data[len(data) // 2 + 1:],
    "other": lambda data: b"something else",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_image_is_made_again(expansion, reference, out, damage):
    path = images(out)[1]
    if path.suffix == ".tar" and damage == "last byte gone":
        pytest.skip("a tar file ends in padding")
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    summary = expansion.run(out)
    assert 0 < summary.made < 18
    assert any("not as they had been written" in warning for warning in summary.warnings)
    assert content(out) == reference


def doubled(data):
    first = data.splitlines(keepends=True)[0]
    return first + data


def edited(data):
    return data.replace(b'"label":0', b'"label":1', 1).replace(b"0.3", b"0.4", 1).replace(
        b"flagged", b"Flagged", 1)


RECORDS = DAMAGE | {
    "doubled": doubled, "edited": edited, "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "reversed": lambda data: b"".join(data.splitlines(keepends=True)[::-1]),
    "without its first line": lambda data: data.partition(b"\n")[2],
    "with a line of another": lambda data: data + b'{"batch":0}\n',
    "Windows line ends": lambda data: data.replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("damage", RECORDS)
@pytest.mark.parametrize("name", ["manifest.jsonl", "skipped.jsonl", "SHA256SUMS"])
def test_a_damaged_record_is_written_again(expansion, reference, out, name, damage):
    before = (out / name).read_bytes()
    after = RECORDS[damage](before)
    (out / name).write_bytes(after)
    summary = expansion.run(out)
    assert summary.whole
    if name != "SHA256SUMS":
        assert after == before or any(name in warning for warning in summary.warnings)
        assert content(out) == reference
    else:
        assert content(out)["manifest.jsonl"] == reference["manifest.jsonl"]


@pytest.mark.parametrize("names", [
    ["README.md"], ["skipped.jsonl"], ["manifest.jsonl"], ["SHA256SUMS"],
    ["skipped.jsonl", "SHA256SUMS"], ["manifest.jsonl", "skipped.jsonl", "SHA256SUMS"],
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
    records[1].write_bytes(RECORDS[damage](records[1].read_bytes()))
    summary = expansion.run(out)
    # nothing is lost where only a line break is gone, say
    assert summary.made in (18 - 2 * 4, 18 - 3 * 4)
    assert content(out) == reference


def interrupt(expansion, out, after):
    def stop(progress):
        if progress.made >= 4 * after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        expansion.run(out, progress=stop)


def test_a_finished_dataset_is_only_read(expansion, reference, out):
    times = {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]}
    assert expansion.run(out).made == 0
    assert {path: path.stat().st_mtime_ns for path in [out, *out.rglob("*")]} == times


def test_checking_is_said_before_making(expansion, reference, out):
    images(out)[1].unlink()
    seen = []
    expansion.run(out, progress=seen.append)
    stages = [progress.stage for progress in seen]
    assert stages == sorted(stages) and {"checking", "making"} == set(stages)
    checked = [progress.done for progress in seen if progress.stage == "checking"]
    assert checked == [4, 8, 12, 16, 18] and seen[-1].done == 18


def test_each_process_checks_its_share(expansion, reference, out):
    path = images(out)[0]  # of batch 0, which is the first process's
    path.write_bytes(b"")
    seen = []
    second = expansion.run(out, shard=(1, 2), progress=seen.append)
    assert sum(p.stage == "checking" for p in seen) == 2 and second.whole
    first = expansion.run(out, shard=(0, 2))
    assert first.made + second.made >= 4  # a shard of both is mended by whoever comes first
    expansion.run(out)
    assert content(out) == reference


# seed images that change

@pytest.fixture
def mine(train, tmp_path):
    return shutil.copytree(train, tmp_path / "mine")


def again(mine, synthesizer, **options):
    return Expansion(mine, synthesizer, 3, **options)


def other_pixels(path):
    """Other pixels in a file of the same size, or nearly so."""
    size = path.stat().st_size
    with PIL.Image.open(path) as image:
        array = np.array(image)
    for seed in range(200):
        array[0, seed % 16] ^= 1 + seed
        buffer = io.BytesIO()
        PIL.Image.fromarray(array).save(buffer, "PNG")
        if len(buffer.getvalue()) == size:
            path.write_bytes(buffer.getvalue())
            return
    raise AssertionError("no file of that size")


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
    assert again(mine, synthesizer).run(out, new=True).whole
    assert content(tmp_path / "out.old1") == before


def test_an_unreadable_seed_image_that_was_mended_is_refused_by_name(mine, synthesizer, tmp_path):
    again(mine, synthesizer).run(tmp_path / "out")
    (mine / "dog" / "2.png").write_bytes(b"NO IMAGE")
    assert again(mine, synthesizer).run(tmp_path / "out").whole  # is none now either
    shutil.copy(mine / "dog" / "1.png", mine / "dog" / "2.png")
    with pytest.raises(ExpansionError, match=r"seed image dog/2.png was changed since"):
        again(mine, synthesizer).run(tmp_path / "out")


def test_seed_images_of_a_dataset_object_are_compared_too(synthesizer, tmp_path):
    rows = [(PIL.Image.new("L", (16, 16), value), value % 2) for value in range(4)]
    again(rows, synthesizer).run(tmp_path / "out")
    assert again(rows, synthesizer).run(tmp_path / "out").made == 0
    rows[2] = (PIL.Image.new("L", (16, 16), 99), 0)
    with pytest.raises(ExpansionError, match=r"seed image #2 was changed since"):
        again(rows, synthesizer).run(tmp_path / "out")


def test_a_seed_image_that_changes_during_the_run_is_refused(mine, synthesizer, tmp_path):
    """Image 1 has replicas in batches 0 and 1."""
    changed = False

    def change(progress):
        nonlocal changed
        if progress.made and not changed:
            other_pixels(mine / "cat" / "1.png")
            changed = True

    with pytest.raises(ExpansionError, match="seed image cat/1.png was changed while"):
        again(mine, synthesizer).run(tmp_path / "out", progress=change)
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
