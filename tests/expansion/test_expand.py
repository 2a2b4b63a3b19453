import copy
import json
import multiprocessing
import os
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import StableDiffusionPipeline
from expansion.folders import content, write_images
from pipelines import pixel_pipeline
from torch.utils.data import TensorDataset
from torchvision.datasets import ImageFolder

from dreamda_aug import DreamDAugment, Synthesizer, files, load_model
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion import GuardEvents
from dreamda_aug.expansion.estimate import estimate
from dreamda_aug.expansion.expansion import Expansion, expand
from dreamda_aug.expansion.manifest import ManifestLine, read_manifest
from dreamda_aug.expansion.metadata import differences
from dreamda_aug.expansion.regeneration import regenerate
from dreamda_aug.expansion.replicas import Plan, count_replicas
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.models.unet import PixelModel

pytestmark = pytest.mark.filterwarnings("ignore:.*colours of the seed images are lost")
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def model():
    return PixelModel(pixel_pipeline())


@pytest.fixture(scope="module")
def augment(model):
    return DreamDAugment(model, "paper", steps=3, noise_scale=8.0, cache=None, batch_size=4)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "train", {"cat": 3, "dog": 2})


def in_child(function) -> FORK.Process:
    process = FORK.Process(target=function)
    process.start()
    return process


@pytest.fixture(scope="module", params=["folder", "webdataset"])
def expansion(request, train, augment):
    return Expansion(train, augment, 3, image_format=request.param, shard_samples=8)


@pytest.fixture(scope="module")
def reference(expansion, tmp_path_factory):
    root = tmp_path_factory.mktemp("reference") / "out"
    assert expansion.run(root).whole
    return content(root)


def test_a_folder_is_what_torchvision_reads_and_every_image_says_that_it_is_synthetic(
    train, augment, tmp_path
):
    summary = expand(train, tmp_path / "out", augment, 3)
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
            assert image.tobytes() != PIL.Image.open(train / line.seed_path).tobytes()
    card = (tmp_path / "out" / "dataset_card.md").read_text()
    assert "Every image in this dataset is synthetic" in card and "| cat | 3 | 9 |" in card


def test_a_synthesizer_and_a_transform_around_it_give_the_same_files(train, augment, tmp_path):
    """What belongs to the transform alone, such as ``p``, plays no role."""
    synthesizer = Synthesizer(augment.synthesizer.model, "paper", steps=3, noise_scale=8.0,
                              cache=None, batch_size=4)
    transform = DreamDAugment(synthesizer, p=0.0, labels_getter=None)
    for name, given in (("alone", synthesizer), ("held", transform), ("augment", augment)):
        assert expand(train, tmp_path / name, given, 2).made == 10
    assert content(tmp_path / "alone") == content(tmp_path / "held")
    assert content(tmp_path / "alone") == content(tmp_path / "augment")
    line = next(iter(read_manifest(tmp_path / "alone")))
    for given in (synthesizer, transform):
        assert regenerate(tmp_path / "alone", line.id, synthesizer=given).equal
    with pytest.raises(ValueError, match="synthesizer must be a Synthesizer.* or None, got {}"):
        expand(train, tmp_path / "wrong", {}, 2)


def test_shards_are_what_webdataset_reads(train, augment, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    expand(train, tmp_path / "out", augment, 3, image_format="webdataset", shard_samples=8)
    shards = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    assert len(shards) == 2
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    lines = list(read_manifest(tmp_path / "out"))
    assert [s["__key__"] for s in samples] == [line.id for line in lines]
    assert [s["cls"] for s in samples] == [line.label for line in lines]
    assert all(s["json"]["id"] == s["__key__"] and s["png"].size == (16, 16) for s in samples)


@pytest.mark.parametrize("count", [2, 3])
def test_files_are_the_same_for_any_number_of_processes(expansion, reference, tmp_path, count):
    children = [in_child(lambda i=i: expansion.run(tmp_path / "out", shard=(i, count)))
                for i in range(count)]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert content(tmp_path / "out") == reference


def test_files_do_not_follow_the_number_of_threads_of_the_caller(expansion, reference, tmp_path):
    def with_threads():
        torch.set_num_threads(2)
        expansion.run(tmp_path / "out")
        assert torch.get_num_threads() == 2

    child = in_child(with_threads)
    child.join()
    assert child.exitcode == 0 and content(tmp_path / "out") == reference
    assert json.loads(reference["plan.json"])["threads"] == 1


def test_files_that_were_deleted_are_made_again(expansion, reference, tmp_path):
    out = tmp_path / "out"
    expansion.run(out)
    deleted = sorted(p for p in out.rglob("*") if p.suffix in (".png", ".tar"))[1]
    deleted.unlink()
    summary = expansion.run(out)
    assert summary.whole and 0 < summary.made < 15
    assert content(out) == reference


def test_other_settings_are_refused_with_the_difference_unless_new(
    train, augment, model, tmp_path
):
    out = tmp_path / "out"
    expand(train, out, augment, 3)
    before = content(out)
    other = DreamDAugment(model, "paper", steps=4, noise_scale=8.0, cache=None, batch_size=4)
    with pytest.raises(ExpansionError, match=r"expansion_ratio: 3 -> 2.*settings.steps: 3 -> 4"):
        expand(train, out, other, 2)
    assert content(out) == before
    assert expand(train, out, other, 2, new=True).stats.made == 10
    assert content(tmp_path / "out.old1") == before
    with pytest.raises(ValueError, match="with one process"):
        expand(train, out, other, 2, new=True, shard=(0, 2))


def test_a_seed_image_that_came_or_went_is_noticed(train, augment, tmp_path):
    mine = shutil.copytree(train, tmp_path / "train")
    expand(mine, tmp_path / "out", augment, 1)
    (mine / "cat" / "0.png").unlink()
    with pytest.raises(ExpansionError, match=r"source.classes.cat: 3 -> 2"):
        expand(mine, tmp_path / "out", augment, 1)


def test_foreign_files_are_refused_and_left_alone(train, augment, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ExpansionError, match=r"found 1 other files \(mine.txt\)"):
        expand(train, tmp_path, augment, 1)
    assert content(tmp_path) == {"mine.txt": b"precious"}
    with pytest.raises(ExpansionError, match="expected a folder, found a file"):
        expand(train, tmp_path / "mine.txt", augment, 1)


def test_broken_seed_images_are_counted_and_strict_refuses_them(train, augment, tmp_path):
    mine = shutil.copytree(train, tmp_path / "train")
    png = (mine / "dog" / "0.png").read_bytes()
    (mine / "cat" / "1.png").write_bytes(b"not an image")
    (mine / "dog" / "0.png").write_bytes(png[: len(png) // 2])
    (mine / "bird").mkdir()
    summary = expand(mine, tmp_path / "out", augment, 2)
    assert summary.stats.made == 6 and sum(summary.stats.unreadable.values()) == 4
    assert summary.warnings[0] == "class 'bird' has no images"
    assert "4 images were not made" in " ".join(summary.warnings)
    skipped = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed_path"] for line in skipped] == [
        "cat/1.png", "cat/1.png", "dog/0.png", "dog/0.png"]
    assert not any(str(tmp_path) in line for line in skipped)
    with pytest.raises(ValueError, match="strict: class 'bird' has no images"):
        expand(mine, tmp_path / "strict", augment, 2, strict=True)
    (mine / "bird").rmdir()
    with pytest.raises(ExpansionError, match="strict: cat/1.png: unreadable"):
        expand(mine, tmp_path / "strict", augment, 2, strict=True)
    with pytest.raises(ExpansionError, match="left out by an earlier run"):
        expand(mine, tmp_path / "again", augment, 2)
        expand(mine, tmp_path / "again", augment, 2, strict=True)


def test_a_full_disk_is_said_plainly_and_nothing_is_lost(
    train, augment, tmp_path, monkeypatch
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
        expand(train, out, augment, 3)
    written = {name: data for name, data in content(out).items() if name.endswith(".png")}
    assert len(written) >= 4 and not list(out.rglob(f"*{files.TEMPORARY}"))
    summary = expand(train, out, augment, 3)
    assert summary.whole and summary.made < 15
    assert written.items() <= content(out).items()


@pytest.mark.parametrize("name", ["00000001_0002", "dog/00000003_0000.png"])
def test_an_image_is_made_again_from_its_record_bit_for_bit(train, augment, tmp_path, name):
    expand(train, tmp_path / "out", augment, 3)
    again = regenerate(tmp_path / "out", name, synthesizer=augment)
    assert again.equal and name in (again.line.id, again.line.file)
    stored = PIL.Image.open(tmp_path / "out" / again.line.file)
    assert again.image.tobytes() == stored.tobytes() and again.image.mode == stored.mode


def test_an_image_of_the_bundled_backbone_is_made_again_from_the_record_alone(tmp_path):
    augment = DreamDAugment("bundled", "paper", steps=4, cache=None, batch_size=8, device="cpu")
    expand("bundled", tmp_path / "out", augment, 3, limit=7)
    lines = list(read_manifest(tmp_path / "out"))
    for line in (lines[0], lines[7], lines[20]):
        assert regenerate(tmp_path / "out", line.id, device="cpu").equal


def test_regenerate_refuses_another_backbone_seed_image_or_id(train, augment, tmp_path):
    mine = shutil.copytree(train, tmp_path / "train")
    out = tmp_path / "out"
    expand(mine, out, augment, 1)
    with pytest.raises(ExpansionError, match="has no image 'nothing'"):
        regenerate(out, "nothing", synthesizer=augment)
    other = DreamDAugment(PixelModel(pixel_pipeline(channels=3)), "paper", cache=None)
    with pytest.raises(ExpansionError, match="expected the model"):
        regenerate(out, "00000000_0000", synthesizer=other)
    shutil.copy(mine / "dog" / "0.png", mine / "cat" / "0.png")
    with pytest.raises(ExpansionError, match="the image was changed"):
        regenerate(out, "00000000_0000", synthesizer=augment)
    (mine / "cat" / "0.png").unlink()
    with pytest.raises(ExpansionError, match="not in the source any more"):
        regenerate(out, "00000000_0000", synthesizer=augment)
    with pytest.raises(FileNotFoundError, match="expected an expanded dataset, found none"):
        regenerate(tmp_path, "00000000_0000")


def test_low_memory_is_on_record_since_it_changes_how_images_are_decoded(
    train, sd_pipeline, tmp_path
):
    """64 pixels are more than this VAE's own 32, so it decodes in tiles."""
    unet = copy.deepcopy(sd_pipeline.unet)
    unet.register_to_config(sample_size=32)
    pipeline = StableDiffusionPipeline(**{**sd_pipeline.components, "unet": unet},
                                       requires_safety_checker=False)
    pipeline.save_pretrained(tmp_path / "model")

    def run(low_memory):
        augment = DreamDAugment(tmp_path / "model", "paper", steps=2, cache=None, batch_size=4,
                                device="cpu", low_memory=low_memory)
        return expand(train, tmp_path / "out", augment, 1)

    run(low_memory=True)
    assert regenerate(tmp_path / "out", "00000000_0000", device="cpu").equal
    with pytest.raises(ExpansionError, match="other settings: low_memory: True -> False"):
        run(low_memory=False)


def test_prompts_are_put_on_record_and_class_names_come_from_the_folders(
    train, sd_pipeline, tmp_path
):
    model = load_model(sd_pipeline)
    augment = DreamDAugment(model, "paper", steps=2, cache=None, batch_size=4)
    expand(train, tmp_path / "out", augment, 1)
    lines = list(read_manifest(tmp_path / "out"))
    assert {(line.class_name, line.condition) for line in lines} == {
        ("cat", "A photo of a cat."), ("dog", "A photo of a dog.")}
    assert regenerate(tmp_path / "out", lines[3].id, synthesizer=augment).equal
    other = DreamDAugment(model, "paper", steps=2, cache=None, batch_size=4,
                          class_names=["cat", "poodle"])
    with pytest.raises(ExpansionError, match="conditions.dog: .*dog.* -> .*poodle"):
        expand(train, tmp_path / "out", other, 1)


def test_what_a_guard_did_is_on_record(train, augment, tmp_path, monkeypatch):
    expansion = Expansion(train, augment, 1, filters=[GuardEvents()])
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


def test_a_dataset_object_can_be_expanded_and_equal_images_get_other_replicas(augment, tmp_path):
    images = torch.rand(3, 1, 16, 16)
    images[2] = images[0]
    data = TensorDataset(images, torch.tensor([0, 1, 0]))
    summary = expand(data, tmp_path / "out", augment, 2)
    assert summary.stats.images == {"0": 4, "1": 2} and summary.stats.same_pixels == {}
    lines = list(read_manifest(tmp_path / "out"))
    assert [line.replica for line in lines] == [0, 1, 0, 1, 2, 3]
    assert len({line.pixels for line in lines}) == 6
    assert expand(data, tmp_path / "out", augment, 2).made == 0
    assert regenerate(tmp_path / "out", lines[5].id, synthesizer=augment, source=data).equal
    with pytest.raises(ExpansionError, match="made from a dataset object; pass source"):
        regenerate(tmp_path / "out", "00000000_0000", synthesizer=augment)


def test_equal_files_get_other_replicas_and_equal_pixels_in_other_files_are_reported(
    train, augment, tmp_path
):
    mine = shutil.copytree(train, tmp_path / "train")
    shutil.copy(mine / "cat" / "0.png", mine / "dog" / "7.png")
    with PIL.Image.open(mine / "cat" / "1.png") as image:
        image.save(mine / "dog" / "8.bmp")  # other bytes, the same pixels
    summary = expand(mine, tmp_path / "out", augment, 2)
    replicas = {}
    for line in read_manifest(tmp_path / "out"):
        replicas.setdefault(line.seed_path, []).append(line.replica)
    assert replicas.pop("dog/7.png") == [2, 3] and set(map(tuple, replicas.values())) == {(0, 1)}
    assert summary.stats.same_pixels == {"dog/8.bmp": "cat/1.png"}
    said, = (warning for warning in summary.warnings if "equal to another one" in warning)
    assert said.startswith("1 seed images are pixel for pixel equal") and "(new=True)" in said
    assert "(dog/8.bmp = cat/1.png)" in said
    assert "dog/8.bmp = cat/1.png" in (tmp_path / "out" / "dataset_card.md").read_text()
    # what it says helps
    shutil.copy(mine / "cat" / "1.png", mine / "dog" / "8.bmp")
    summary = expand(mine, tmp_path / "out", augment, 2, new=True)
    assert summary.stats.same_pixels == {} and not any("equal" in each for each in summary.warnings)
    lines = list(read_manifest(tmp_path / "out"))
    assert {line.replica for line in lines if line.seed_path == "dog/8.bmp"} == {2, 3}
    assert len({line.pixels for line in lines}) == len(lines)


def test_the_source_may_hold_images_of_many_modes(augment, tmp_path):
    grey = PIL.Image.fromarray(torch.randint(256, (20, 24), dtype=torch.uint8).numpy())
    root = tmp_path / "train" / "a"
    root.mkdir(parents=True)
    deep = torch.randint(60000, (20, 24)).to(torch.uint16)
    grey.convert("1").save(root / "1.png")
    grey.convert("RGB").convert("P").save(root / "p.png")
    grey.convert("RGB").convert("CMYK").save(root / "cmyk.jpg")
    grey.convert("RGBA").save(root / "rgba.png")
    PIL.Image.fromarray(deep.numpy()).save(root / "deep.png")
    PIL.Image.fromarray(deep.numpy().astype("float32")).save(root / "float.tif")
    summary = expand(tmp_path / "train", tmp_path / "out", augment, 1)
    assert summary.stats.made == 6 and summary.stats.losses.total() == 1
    modes = {}
    for line in read_manifest(tmp_path / "out"):
        with PIL.Image.open(tmp_path / "out" / line.file) as image:
            assert image.size == (24, 20)
            modes[line.seed_path] = image.mode
        assert regenerate(tmp_path / "out", line.id, synthesizer=augment).equal
    assert modes == {"a/1.png": "L", "a/cmyk.jpg": "RGB", "a/deep.png": "I;16",
                     "a/float.tif": "I;16",
                     "a/p.png": "RGB", "a/rgba.png": "RGBA"}


def test_a_dry_run_counts_and_writes_nothing(train, augment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = estimate(Expansion(train, augment, 3))
    assert (result.samples, result.seed_images, result.batches, result.steps) == (15, 5, 4, 2)
    # batches of 4 hold 2, 2, 2 and 1 seed images: 7 inversions; the decoder runs twice a step
    assert 15 * 2 + 7 * 2 < result.denoiser_rows <= 15 * 2 * 1.5 + 7 * 2
    assert result.seconds > 0 and result.disk_bytes > 15 * 500
    assert "15 images from 5 seed images, in 4 batches" in "\n".join(result.lines())
    assert not list(tmp_path.iterdir())


def test_ratios_balance_limit_and_classes_choose_what_is_made(train):
    source = open_seed_images(train)
    assert count_replicas(source, 2) == dict.fromkeys(range(5), 2)
    assert count_replicas(source, {"dog": 4}) == {0: 5, 1: 5, 2: 5, 3: 4, 4: 4}
    # cat: 3 + 3·1 = 6; dog: 2 + 4
    assert count_replicas(source, 1, balance=True) == {0: 1, 1: 1, 2: 1, 3: 2, 4: 2}
    assert count_replicas(source, 1, balance=True, only_classes=["dog"]) == {3: 2, 4: 2}
    assert count_replicas(source, 1, balance=True, limit=np.int64(3)) == {0: 1, 1: 1, 3: 2}
    for arguments, message in (
        ({"expansion_ratio": -1}, "must be an integer >= 0, got -1"),
        ({"expansion_ratio": 0}, "nothing to make"),
        ({"expansion_ratio": {"fox": 1}}, "no class 'fox'"),
        ({"expansion_ratio": 1, "only_classes": ["fox"]}, "no class 'fox'"),
        ({"expansion_ratio": 1, "limit": 0}, "limit must be an integer >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            count_replicas(source, **arguments)


def test_units_hold_every_sample_once():
    plan = Plan({0: 3, 1: 0, 4: 5, 7: 1}, 4)
    samples = [sample for batch in range(plan.batches) for sample in plan.batch(batch)]
    assert samples == [(0, 0), (0, 1), (0, 2), *((4, k) for k in range(5)), (7, 0)]
    assert len(plan) == 9 and plan.batches == 3 and plan.seed_images == 3
    assert samples[4].id == "00000004_0001"
    later = Plan({0: 3, 4: 5}, 4).beginning_at({4: 7})
    assert later.batch(1) == [(4, 8), (4, 9), (4, 10), (4, 11)] and later.batch(0)[3] == (4, 7)
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1"):
        Plan({0: 1}, 0)


@pytest.mark.parametrize("paths", [1, 2, 3, 100])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
def test_inversions_are_counted_without_listing_the_plan(batch_size, paths):
    plan = Plan({0: 3, 2: 11, 3: 1, 7: 26}, batch_size)
    listed = [{(s.seed_index, s.replica % paths) for s in plan.batch(batch)}
              for batch in range(plan.batches)]
    assert plan.inversions(paths) == sum(map(len, listed))


def test_a_dry_run_of_many_images_opens_few(augment, tmp_path, monkeypatch):
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(
        f"{i}.png,{i % 3}\n" for i in range(2000)))
    for i in range(4):
        PIL.Image.new("L", (16, 16), 9 * i).save(tmp_path / f"{i}.png")
    opened, real = [], PIL.Image.open
    monkeypatch.setattr(PIL.Image, "open", lambda path: opened.append(path) or real(path))
    result = estimate(Expansion(tmp_path / "list.csv", augment, 5))
    assert result.samples == 10_000 and len(set(opened)) <= 4
    assert estimate(Expansion(tmp_path / "list.csv", augment, 900_000), measure=False).batches


def test_differences_are_named_by_their_path():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == [
        "a.c: 2 -> 3", "d: None -> 4"]


def test_the_expansion_refuses_bad_arguments(train, augment):
    with pytest.raises(ValueError, match="image_format must be .* got .zip."):
        Expansion(train, augment, 1, image_format="zip")
    with pytest.raises(ValueError, match="shard_samples must be an integer >= 1, got 0"):
        Expansion(train, augment, 1, shard_samples=0)
    with pytest.raises(ValueError, match="threads must be an integer >= 1 and <= 4095, got 0"):
        Expansion(train, augment, 1, threads=0)
    with pytest.raises(ValueError, match="shard must be"):
        expand(train, "nowhere", augment, 1, shard=(2, 2))
    named = DreamDAugment(augment.synthesizer.model, "paper", class_names=["a"], cache=None)
    with pytest.raises(ValueError, match="class_names must name the source's 2 classes, got 1"):
        Expansion(train, named, 1)
