import json
import os
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from expansion.folders import content, in_child
from pipelines import pixel_pipeline
from torchvision.datasets import ImageFolder

from dreamda_aug import DDIMInversion, DreamDAugment, Synthesizer, files, load_model
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion import estimate
from dreamda_aug.expansion.expansion import Expansion, expand
from dreamda_aug.expansion.filters import GuardEvents
from dreamda_aug.expansion.manifest import ManifestLine, read_manifest
from dreamda_aug.expansion.regeneration import regenerate
from dreamda_aug.expansion.seeds import Plan, count_replicas
from dreamda_aug.expansion.storage import OutputFolder
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.models import ModelSpec
from dreamda_aug.models.unet import UNetModel


@pytest.fixture(scope="module", params=["folder", "webdataset"])
def expansion(request, whole_train, synthesizer):
    return Expansion(whole_train, synthesizer, 3, image_format=request.param, shard_samples=8)


@pytest.fixture(scope="module")
def reference(expansion, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "out"
    assert expansion.run(out).whole
    return content(out)


def test_constructing_an_expansion_loads_no_model(whole_train, tmp_path, monkeypatch):
    monkeypatch.setattr(ModelSpec, "load", lambda self: pytest.fail("a model was loaded"))
    expansion = Expansion(whole_train, Synthesizer("nowhere"), 3)
    assert len(expansion.plan) == 15
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(ExpansionError, match="found 1 other files"):
        expansion.run(tmp_path / "out")


def test_a_second_process_on_the_same_share_is_refused(expansion, reference, tmp_path):
    with OutputFolder(tmp_path / "out").lock(".dreamda/lock-0-of-1"):
        (tmp_path / "out" / "plan.json").write_bytes(reference["plan.json"].replace(
            b"../../", b"../"))
        with pytest.raises(ExpansionError, match="another process is at work here"):
            expansion.run(tmp_path / "out")
    assert expansion.run(tmp_path / "out").whole


def test_writing_between_the_seed_images_is_refused(whole_train, synthesizer):
    with pytest.raises(ValueError, match="out must lie outside the seed images' folder"):
        expand(whole_train, whole_train / "cat", synthesizer, 1)
    assert sorted(os.listdir(whole_train / "cat")) == ["0.png", "1.png", "2.png"]


def test_a_folder_is_what_torchvision_reads_and_every_image_says_that_it_is_synthetic(
    whole_train, synthesizer, tmp_path
):
    summary = expand(whole_train, tmp_path / "out", synthesizer, 3)
    assert summary.whole and summary.made == summary.stats.made == 15
    dataset = ImageFolder(tmp_path / "out")
    assert dataset.classes == ["cat", "dog"] and dataset.targets == [0] * 9 + [1] * 6
    lines = list(read_manifest(tmp_path / "out"))
    assert [line.id for line in lines] == sorted(line.id for line in lines) and len(lines) == 15
    for line in lines:
        with PIL.Image.open(tmp_path / "out" / line.file) as image:
            assert image.mode == "L" and image.size == (16, 16)
            assert image.text["synthetic"] == "true"
            assert ManifestLine.from_json(image.text["dreamda"]) == line
            assert image.tobytes() != PIL.Image.open(whole_train / line.seed_path).tobytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Every image in this dataset is synthetic" in card and "| cat | 3 | 9 |" in card


def test_files_are_the_same_for_any_number_of_processes_and_threads(
    expansion, reference, tmp_path
):
    for count in (2, 3):
        def share(number, count=count):
            torch.set_num_threads(2)
            expansion.run(tmp_path / str(count), shard=(number, count))
            assert torch.get_num_threads() == 2

        children = [in_child(lambda number=i: share(number)) for i in range(count)]
        for child in children:
            child.join()
            assert child.exitcode == 0
        assert content(tmp_path / str(count)) == reference
    assert json.loads(reference["plan.json"])["threads"] == 1


def test_other_settings_are_refused_with_the_difference_unless_new(
    whole_train, synthesizer, tmp_path
):
    out = tmp_path / "out"
    expand(whole_train, out, synthesizer, 3)
    before = content(out)
    other = Synthesizer(synthesizer.model, "paper", steps=4, noise_scale=8.0, cache=None,
                        batch_size=4)
    with pytest.raises(ExpansionError, match=r"expansion_ratio: 3 -> 2.*settings.steps: 3 -> 4"):
        expand(whole_train, out, other, 2)
    assert content(out) == before
    assert expand(whole_train, out, other, 2, new=True).stats.made == 10
    assert content(tmp_path / "out.old1") == before
    with pytest.raises(ValueError, match="with one process"):
        expand(whole_train, out, other, 2, new=True, shard=(0, 2))


def test_broken_seed_images_are_counted_and_strict_refuses_them(whole_train, synthesizer, tmp_path):
    mine = shutil.copytree(whole_train, tmp_path / "train")
    png = (mine / "dog" / "0.png").read_bytes()
    (mine / "cat" / "1.png").write_bytes(b"not an image")
    (mine / "dog" / "0.png").write_bytes(png[: len(png) // 2])
    (mine / "bird").mkdir()
    summary = expand(mine, tmp_path / "out", synthesizer, 2)
    assert summary.stats.made == 6 and sum(summary.stats.unreadable.values()) == 4
    assert summary.warnings[0] == "class 'bird' has no images"
    assert "4 images were not made" in " ".join(summary.warnings)
    skipped = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed_path"] for line in skipped] == [
        "cat/1.png", "cat/1.png", "dog/0.png", "dog/0.png"]
    assert not any(str(tmp_path) in line for line in skipped)
    with pytest.raises(ValueError, match="strict: class 'bird' has no images"):
        expand(mine, tmp_path / "strict", synthesizer, 2, strict=True)
    (mine / "bird").rmdir()
    with pytest.raises(ExpansionError, match="strict: cat/1.png: unreadable"):
        expand(mine, tmp_path / "strict", synthesizer, 2, strict=True)
    expand(mine, tmp_path / "again", synthesizer, 2)
    with pytest.raises(ExpansionError, match="left out by an earlier run"):
        expand(mine, tmp_path / "again", synthesizer, 2, strict=True)


def test_a_full_disk_is_said_plainly_and_nothing_is_lost(
    whole_train, synthesizer, tmp_path, monkeypatch
):
    out, real, calls = tmp_path / "out", os.replace, 0

    def full(source, target):
        nonlocal calls
        calls += 1
        if calls == 8:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(ExpansionError, match="No space left on device.*run the same command again"):
        expand(whole_train, out, synthesizer, 3)
    written = {name: data for name, data in content(out).items() if name.endswith(".png")}
    assert len(written) >= 4 and not list(out.rglob(f"*{files.TEMPORARY}"))
    summary = expand(whole_train, out, synthesizer, 3)
    assert summary.whole and summary.made < 15
    assert written.items() <= content(out).items()


def test_what_a_guard_did_is_on_record(whole_train, synthesizer, tmp_path, monkeypatch):
    expansion = Expansion(whole_train, synthesizer, 1, filters=[GuardEvents()])
    real = expansion.maker.sampler.synthesize

    def guarded(values, requests, digests):
        made = real(values, requests, digests)
        return made._replace(events=["replaced", "", "retried", ""][: len(requests)])

    monkeypatch.setattr(expansion.maker.sampler, "synthesize", guarded)
    summary = expansion.run(tmp_path / "out")
    events = {line.id: line.events for line in read_manifest(tmp_path / "out")}
    assert events == {"00000001_0000": [], "00000002_0000": ["retried"], "00000003_0000": []}
    assert summary.stats.dropped == {"guard": 2} and summary.stats.events == 1
    assert any("1 images failed a check" in warning for warning in summary.warnings)


def test_equal_files_get_other_replicas_and_equal_pixels_in_other_files_are_reported(
    whole_train, synthesizer, tmp_path
):
    mine = shutil.copytree(whole_train, tmp_path / "train")
    shutil.copy(mine / "cat" / "0.png", mine / "dog" / "7.png")
    with PIL.Image.open(mine / "cat" / "1.png") as image:
        image.save(mine / "dog" / "8.bmp")  # other bytes, the same pixels
    summary = expand(mine, tmp_path / "out", synthesizer, 2)
    replicas = {}
    for line in read_manifest(tmp_path / "out"):
        replicas.setdefault(line.seed_path, []).append(line.replica)
    assert replicas.pop("dog/7.png") == [2, 3] and set(map(tuple, replicas.values())) == {(0, 1)}
    assert summary.stats.same_pixels == {"dog/8.bmp": "cat/1.png"}
    said, = (warning for warning in summary.warnings if "equal to another one" in warning)
    assert "(dog/8.bmp = cat/1.png)" in said
    assert "dog/8.bmp = cat/1.png" in (tmp_path / "out" / "README.md").read_text()


def test_a_dry_run_counts_and_writes_nothing(whole_train, synthesizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = estimate(Expansion(whole_train, synthesizer, 3))
    assert (result.samples, result.seed_images, result.batches, result.steps) == (15, 5, 4, 2)
    assert result.seconds > 0 and result.disk_bytes > 15 * 500
    assert "15 images from 5 seed images, in 4 batches" in "\n".join(result.lines())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [
    {"paths": 2}, {"inversion": DDIMInversion(exact=False), "eta": 0.0, "solver": "heun"},
    {"guidance_scale": 3.0, "guidance_interval": (0.0, 0.5)},
], ids=["paths", "solver", "guidance"])
def test_a_dry_run_names_the_rows_that_a_run_takes(whole_train, tmp_path, options):
    model = UNetModel(pixel_pipeline(num_classes=4))
    synthesizer = Synthesizer(model, **{"preset": "paper", "steps": 4, "noise_scale": 1.0,
                                        "cache": None, "batch_size": 4} | options)
    expansion = Expansion(open_seed_images(whole_train), synthesizer, 3)
    rows = estimate(expansion, measure=False).denoiser_rows
    hook = model.hook
    before = hook.encoder_rows + hook.decoder_rows
    expansion.run(tmp_path / "out")
    assert rows == -(-(hook.encoder_rows + hook.decoder_rows - before) // 2)


def test_ratios_balance_limit_and_classes_choose_what_is_made(whole_train):
    source = open_seed_images(whole_train)
    assert count_replicas(source, 2) == dict.fromkeys(range(5), 2)
    assert count_replicas(source, {"dog": 4}) == {0: 5, 1: 5, 2: 5, 3: 4, 4: 4}
    # cat: 3 + 3·1 = 6; dog: 2 + 4
    assert count_replicas(source, 1, balance=True) == {0: 1, 1: 1, 2: 1, 3: 2, 4: 2}
    assert count_replicas(source, 1, balance=True, only_classes=["dog"]) == {3: 2, 4: 2}
    assert count_replicas(source, 1, balance=True, limit=np.int64(3)) == {0: 1, 1: 1, 3: 2}
    for arguments, message in (
        ({"expansion_ratio": -1}, "must be an integer >= 0 and <= 1000000, got -1"),
        ({"expansion_ratio": 0}, "nothing to make"),
        ({"expansion_ratio": {"fox": 1}}, "no class 'fox'"),
        ({"expansion_ratio": 1, "limit": 0}, "limit must be an integer >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            count_replicas(source, **arguments)


def test_batches_hold_every_sample_once_and_inversions_are_counted_without_listing_them():
    plan = Plan({0: 3, 1: 0, 4: 5, 7: 1}, 4)
    samples = [sample for batch in range(plan.batches) for sample in plan.batch(batch)]
    assert samples == [(0, 0), (0, 1), (0, 2), *((4, k) for k in range(5)), (7, 0)]
    assert len(plan) == 9 and plan.batches == 3 and plan.replicas == {0: 3, 4: 5, 7: 1}
    assert samples[4].id == "00000004_0001"
    later = Plan({0: 3, 4: 5}, 4, {"4": 7})
    assert later.batch(1) == [(4, 8), (4, 9), (4, 10), (4, 11)] and later.batch(0)[3] == (4, 7)
    for batch_size in (1, 3, 4, 50):
        plan = Plan({0: 3, 2: 11, 3: 1, 7: 26}, batch_size)
        for paths in (1, 2, 100):
            assert plan.inversions(paths) == sum(
                len({(s.seed_index, s.replica % paths) for s in plan.batch(batch)})
                for batch in range(plan.batches))


def test_prompts_are_put_on_record_and_class_names_come_from_the_folders(
    whole_train, sd_pipeline, tmp_path
):
    model = load_model(sd_pipeline)
    synthesizer = Synthesizer(model, "paper", steps=2, cache=None, batch_size=4)
    expand(whole_train, tmp_path / "out", synthesizer, 1)
    lines = list(read_manifest(tmp_path / "out"))
    assert {(line.class_name, line.condition) for line in lines} == {
        ("cat", "A photo of a cat."), ("dog", "A photo of a dog.")}
    assert regenerate(tmp_path / "out", lines[3].id, synthesizer=synthesizer).equal
    other = DreamDAugment(model, "paper", steps=2, cache=None, batch_size=4,
                          class_names=["cat", "poodle"])
    with pytest.raises(ExpansionError, match="conditions.dog: .*dog.* -> .*poodle"):
        expand(whole_train, tmp_path / "out", other, 1)
