"""The protocol of the accuracy study: splits, readers, equal steps, resuming, statistics."""

import gzip
import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pixel_pipeline
from PIL import Image
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import accuracy
import accuracy_pools
import accuracy_training
from accuracy_ablations import ABLATIONS, make_at
from accuracy_arms import ARMS, UNLABELLED_ARMS, Arm, arms_of
from accuracy_pools import Pool, PoolSpec, Stopped, load_pool, settings_of
from accuracy_report import closed_gap, comparisons, interval, sentences, summary, table
from accuracy_runs import Run, Setup, probe_of, result, result_path, with_labeler
from accuracy_tasks import (
    TASKS,
    Images,
    ReadClassFolders,
    Task,
    read_atlases,
    read_idx,
    split,
    stratified,
)
from accuracy_training import CLASSIFIERS, Training

from dreamda_aug import Generator
from dreamda_aug.backbones.unet import PixelBackbone
from dreamda_aug.generator import Request


def numbered(count: int, size: int = 16) -> Images:
    """Grey images that carry their number, labelled 0, 1, 2, 0, ..."""
    numbers = torch.arange(count)
    pixels = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(count))
    pixels = (pixels * 255).to(torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = numbers % 256, numbers // 256
    return Images(pixels, numbers % 3)


def number_of(images: Images) -> set[int]:
    return set((images.pixels[:, 0, 0, 0].int() + 256 * images.pixels[:, 0, 0, 1].int()).tolist())


def read_numbered(place: Path) -> tuple[Images, Images]:
    return numbered(300), numbered(60)


TINY = Task("tiny", read_numbered, 16, 1, 3, ((2, 3),), "small_cnn", 8, batch_size=6,
            backbone="none", reverse_steps=4, validation_images=30, judge=None)  # fmt: skip


# --- splits


def test_shots_are_equally_many_per_class_and_disjoint_from_validation():
    data = TINY.read(Path())
    for rng_seed in range(3):
        images = split(TINY, data, 5, rng_seed)
        assert images.shots.labels.bincount().tolist() == [5, 5, 5]
        assert images.validation.labels.bincount().tolist() == [10, 10, 10]
        assert not number_of(images.shots) & number_of(images.validation)
        assert number_of(images.test) == set(range(60))


def test_validation_is_fixed_while_shots_follow_the_rng_seed():
    first, second = (split(TINY, TINY.read(Path()), 5, rng_seed) for rng_seed in (0, 1))
    assert torch.equal(first.validation.pixels, second.validation.pixels)
    assert number_of(first.shots) != number_of(second.shots)


def test_unlabelled_images_are_neither_shots_nor_validation():
    task = replace(TINY, unlabelled=40)
    images = split(task, task.read(Path()), 5, 0)
    assert len(number_of(images.unlabelled)) == 40
    assert not number_of(images.unlabelled) & number_of(images.shots)
    assert not number_of(images.unlabelled) & number_of(images.validation)


def test_validation_that_comes_from_the_test_files_leaves_the_test_set():
    task = replace(TINY, validation_from="test")
    images = split(task, task.read(Path()), 100, 0)
    assert len(images.shots) == 300 and len(images.validation) == 30 and len(images.test) == 30
    assert not number_of(images.validation) & number_of(images.test)


def test_a_class_with_fewer_images_gives_all_it_has():
    labels = torch.tensor([0, 1, 1, 1, 0, 1])
    assert sorted(stratified(labels, 3, 0)[:2].tolist()) == [0, 4]
    assert len(stratified(labels, 3, 0)) == 5


# --- readers


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read(tmp_path, packed):
    images = {"train": numbered(7, 5), "t10k": numbered(4, 5)}
    for part, content in images.items():
        for kind, values in (("images-idx3", content.pixels[:, 0]),
                             ("labels-idx1", content.labels)):  # fmt: skip
            sizes = np.array(values.shape, ">i4").tobytes()
            raw = bytes([0, 0, 8, values.ndim]) + sizes + values.numpy().astype(np.uint8).tobytes()
            path = tmp_path / f"{part}-{kind}-ubyte{'.gz' * packed}"
            path.write_bytes(gzip.compress(raw) if packed else raw)
    for found, expected in zip(read_idx(tmp_path), images.values(), strict=True):
        assert torch.equal(found.pixels, expected.pixels)
        assert torch.equal(found.labels, expected.labels)


def test_atlases_are_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    for name, rows in (("data_batch_1", pixels[:2]), ("data_batch_2", pixels[2:4]),
                       ("test_batch", pixels[4:])):  # fmt: skip
        Image.fromarray(rows.reshape(-1, 1024, 3)).save(tmp_path / f"{name}.png")
    (tmp_path / "train_lables.json").write_text("[3, 1, 4, 1]")
    (tmp_path / "test_lables.json").write_text("[5, 9]")
    train, test = read_atlases(tmp_path)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    assert torch.equal(torch.cat([train.pixels, test.pixels]), expected)
    assert train.labels.tolist() == [3, 1, 4, 1] and test.labels.tolist() == [5, 9]


def test_class_folders_are_read_alike_from_a_folder_and_from_inside_a_zip(tmp_path):
    for name in ("train/b/1.png", "train/a/2.png", "test/b/3.jpg"):
        path = tmp_path / "data" / "deep" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (200, 10, 30)).save(path)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in (tmp_path / "data").rglob("*.*"):
            archive.write(path, path.relative_to(tmp_path / "data"))
    for place in (tmp_path / "data", tmp_path / "data.zip"):
        train, test = ReadClassFolders(4)(place)
        assert train.pixels.shape == (2, 3, 4, 4) and train.labels.tolist() == [0, 1]
        assert test.labels.tolist() == [1]
        assert train.pixels[0, :, 0, 0].tolist() == [200, 10, 30]
        assert ReadClassFolders(4, "L")(place)[0].pixels.shape == (2, 1, 4, 4)


# --- arms


def noise_pool(count: int, channels: int = 1, size: int = 16) -> Pool:
    made = torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))
    return Pool((made * 255).to(torch.uint8), torch.arange(count) % 3, 1.5)


TRAINED = [arm for arm in ARMS + UNLABELLED_ARMS if arm.pool or arm.labels != "probe"]


@pytest.fixture
def setup_with_backbone(tmp_path):
    folder = tmp_path / "backbone"
    pixel_pipeline().save_pretrained(folder)
    return Setup(TINY, Path(), tmp_path / "state", str(folder), device="cpu")


@pytest.mark.parametrize("arm", TRAINED, ids=lambda arm: arm.name)
def test_every_arm_takes_the_tasks_steps(arm, setup_with_backbone):
    task = replace(TINY, unlabelled=10)
    pool = noise_pool(18 if arm.pool else 0)
    images = split(task, task.read(Path()), 2, 0)
    arm = with_labeler(setup_with_backbone, arm, images)
    training = Training(task, arm, images, pool, pool.seed_labels.clone(), 0)
    before = [p.clone() for p in training.model.parameters()]
    outcome = training.run()
    assert outcome.steps == task.steps
    after = list(outcome.classifier.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert outcome.classifier(torch.rand(2, 1, 16, 16)).shape == (2, 3)


def test_a_pool_labelled_by_the_probe_is_accepted_whole(setup_with_backbone):
    images, pool = split(TINY, TINY.read(Path()), 2, 0), noise_pool(18)
    arm = next(arm for arm in ARMS if arm.name == "DreamDA, probe labels")
    probe = probe_of(setup_with_backbone, images)
    expected = probe(pool.pixels.float() / 255).argmax(1)
    arm = with_labeler(setup_with_backbone, arm, images)
    outcome = Training(TINY, arm, images, pool, expected, 0).run()
    assert outcome.accepted == outcome.labels_right == 1


def test_the_probe_alone_is_an_arm_that_trains_nothing(setup_with_backbone):
    arm = next(arm for arm in ARMS if arm.labels == "probe" and not arm.pool)
    found = result(setup_with_backbone, Run(arm, PoolSpec("none"), 2, 0))
    assert found["steps"] == 0 and 0 <= found["test"] <= 1


def test_all_arms_start_from_the_same_weights():
    images = split(TINY, TINY.read(Path()), 2, 0)
    first, second = (Training(TINY, arm, images, noise_pool(18), torch.arange(18), 0).model
                     for arm in ARMS[:2])  # fmt: skip
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_batch_holds_the_same_share_of_real_images_with_copies_and_with_synthetic_ones(
    monkeypatch,
):
    seen = []
    monkeypatch.setattr(Training, "_view", lambda self, pixels: seen.append(pixels) or
                        pixels.float() / 255)  # fmt: skip
    images = split(TINY, TINY.read(Path()), 2, 0)
    pool = noise_pool(18)
    Training(TINY, Arm("seed labels", "dreamda"), images, pool, pool.seed_labels, 0).run()
    made = {tuple(image.flatten().tolist()) for image in pool.pixels}
    for batch in seen:
        assert sum(tuple(image.flatten().tolist()) in made for image in batch) == 4


def test_soft_labels_are_the_single_heads_probabilities(monkeypatch):
    targets = []
    plain = accuracy_training.F.cross_entropy
    monkeypatch.setattr(accuracy_training.F, "cross_entropy",
                        lambda x, y: targets.append(y) or plain(x, y))  # fmt: skip
    images, pool = split(TINY, TINY.read(Path()), 2, 0), noise_pool(18)
    Training(TINY, Arm("soft", "noise", "soft"), images, pool, torch.full((18,), -1), 0).run()
    stages = accuracy_training.STAGES
    first = TINY.steps * (stages - accuracy_training.ROUNDS) // stages
    assert all(hard.dtype == torch.int64 for hard in targets[:first])
    assert len(targets) == TINY.steps
    for soft in targets[first:]:
        torch.testing.assert_close(soft.sum(1), torch.ones(6))
        assert 0 < ((soft > 0) & (soft < 1)).any(1).sum() <= 4


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_answers_with_the_tasks_classes(name, tmp_path):
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    weights = tmp_path / "weights.safetensors"
    save_file(resnet18().state_dict(), weights)
    channels = 3 if name == "resnet18_pretrained" else 1
    task = replace(TINY, classifier=name, channels=channels)
    classifier = CLASSIFIERS[name](task, weights).eval()
    assert classifier(torch.rand(2, channels, 16, 16)).shape == (2, 3)


def test_a_pretrained_task_without_weights_is_refused():
    with pytest.raises(SystemExit, match=r"caltech101_pretrained needs --weights FILE"):
        CLASSIFIERS["resnet18_pretrained"](TASKS["caltech101_pretrained"], None)


def test_tasks_are_consistent():
    for task in TASKS.values():
        assert task.steps % 8 == 0 and task.classifier in CLASSIFIERS
        assert len({arm.name for arm in arms_of(task)}) == len(arms_of(task))


# --- pools


@pytest.fixture
def backbone():
    return PixelBackbone(pixel_pipeline())


def test_a_pool_that_was_interrupted_is_that_of_an_uninterrupted_run(
    tmp_path, backbone, monkeypatch
):
    monkeypatch.setattr(accuracy_pools, "SLICE", 4)
    shots = split(TINY, TINY.read(Path()), 2, 0).shots
    spec = PoolSpec("replicas", 3, settings_of(TINY, 0.5, 0.6, 1.0))
    whole = load_pool(tmp_path / "a", TINY, spec, shots, 0, backbone)
    assert whole.pixels.shape == (18, 1, 16, 16)
    assert whole.seed_labels.tolist() == shots.labels.repeat_interleave(3).tolist()
    load_pool(tmp_path / "b", TINY, spec, shots, 0, backbone)
    files = sorted((tmp_path / "b").rglob("*.safetensors"))
    assert len(files) == 6
    for path in files[2:]:
        path.unlink()
    with pytest.raises(Stopped):
        load_pool(tmp_path / "b", TINY, spec, shots, 0, backbone, deadline=0)
    again = load_pool(tmp_path / "b", TINY, spec, shots, 0, backbone)
    assert torch.equal(again.pixels, whole.pixels)


def test_copies_are_the_seed_images_and_noise_knows_no_label(tmp_path, backbone):
    shots = split(TINY, TINY.read(Path()), 2, 0).shots
    copies = load_pool(tmp_path, TINY, PoolSpec("copies", 2), shots, 0, None)
    assert torch.equal(copies.pixels[::2], shots.pixels)
    assert torch.equal(copies.pixels[1::2], shots.pixels)
    settings = accuracy_pools.noise_settings(TINY)
    noise = load_pool(tmp_path, TINY, PoolSpec("noise", 2, settings), shots, 0, backbone)
    assert len(noise.pixels) == 12 and noise.seed_labels.tolist() == [-1] * 12
    assert len({tuple(image.flatten().tolist()) for image in noise.pixels}) == 12


@pytest.mark.parametrize("where", ["x_T", "up block"])
def test_noise_elsewhere_moves_images_with_its_scale_and_not_at_all_at_zero(where, backbone):
    images = numbered(2).pixels.float() / 255
    requests = [Request(i, None, k) for i in range(2) for k in range(2)]
    generator = Generator(backbone, settings_of(TINY, 0.5, 1.0, 0.0))
    distances = []
    for scale in (0.0, 0.3, 0.9):
        made = make_at(f"{where} {scale}", generator)(images, requests)
        distances.append((made - images.repeat_interleave(2, dim=0)).square().mean().item())
        assert torch.equal(made[0], made[1]) == (scale == 0)
    assert distances[0] < 1e-6 < distances[1] < distances[2]


def test_ablations_have_distinct_rows():
    base = PoolSpec("replicas", 3, settings_of(TINY, 0.5, 0.6, 1.0))
    for build in ABLATIONS.values():
        names = [variant.named_arm().name for variant in build(base)]
        assert len(set(names)) == len(names) > 1


# --- runs


def test_a_run_is_trained_once_and_again_only_when_something_changed(tmp_path, monkeypatch):
    setup = Setup(TINY, Path(), tmp_path)
    run = Run(ARMS[1], PoolSpec("copies", 3), 2, 0)
    first = result(setup, run)
    assert set(first) >= {"arm", "shots", "rng_seed", "validation", "test", "commit", "machine"}
    monkeypatch.setattr(Training, "run", None)  # would fail if it were called
    assert result(setup, run) == first
    others = [replace(run, rng_seed=1), replace(run, spec=PoolSpec("copies", 4)),
              replace(run, arm=replace(run.arm, weak=(0.0, 0.0)))]  # fmt: skip
    setups = [setup, setup, setup, replace(setup, task=replace(TINY, learning_rate=1e-2))]
    paths = [result_path(s, r) for s, r in zip(setups, [*others, run], strict=True)]
    assert len({*paths, result_path(setup, run)}) == 5


def test_a_run_beyond_the_deadline_is_not_begun(tmp_path):
    with pytest.raises(Stopped):
        result(Setup(TINY, Path(), tmp_path, deadline=0), Run(ARMS[0], PoolSpec("none"), 2, 0))


def test_tuning_looks_at_validation_alone(tmp_path):
    run = Run(ARMS[0], PoolSpec("none"), 2, 100, tuning=True)
    found = result(Setup(TINY, Path(), tmp_path), run)
    assert found["test"] is None and 0 <= found["validation"] <= 1


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command on a tiny task: call it with further arguments."""
    task = replace(TINY, img2img=(0.5,), dials=((0.5, 0.6, 1.0),), weak_views=((0.0, 0.1),))
    folder = tmp_path / "backbone"
    pixel_pipeline().save_pretrained(folder)
    monkeypatch.setitem(TASKS, "fashion_mnist", task)

    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [
            "accuracy.py", "fashion_mnist", "--data", "none", "--state", str(tmp_path / "state"),
            "--out", str(tmp_path / "out"), "--rng-seeds", "0", "1", "--processes", "1",
            "--backbone", str(folder), "--device", "cpu", *arguments,
        ])  # fmt: skip
        accuracy.main()

    return call


def test_an_ablation_can_be_thinned(tmp_path, command):
    rows = ["1 path, seed labels", "a path per replica, seed labels"]
    command("--ablation", "paths", "--replicas", "2", "--arms", *rows)
    found = json.loads((tmp_path / "out" / "tiny_paths.json").read_text())["runs"]
    assert {run["arm"] for run in found} == set(rows)
    assert {run["pool"] for run in found} == {12} and all(run["diversity"] > 0 for run in found)
    assert "2 synthetic images of each" in (tmp_path / "out" / "tiny_paths.md").read_text()


def test_the_whole_command_resumes_to_the_same_json(tmp_path, command):
    arms = ("--arms", "real only", "DreamDA + AMST")
    command(*arms)
    first = (tmp_path / "out" / "tiny.json").read_text()
    facts = json.loads(first)
    assert {run["steps"] for run in facts["runs"]} == {8} and len(facts["runs"]) == 4
    assert facts["choices"]["DreamDA + AMST"]["chosen"] == 0
    command(*arms)
    assert (tmp_path / "out" / "tiny.json").read_text() == first
    assert (tmp_path / "out" / "tiny.png").exists()
    assert "| DreamDA + AMST |" in (tmp_path / "out" / "tiny.md").read_text()


def test_choices_of_an_earlier_result_are_taken_and_others_refused(tmp_path, command, monkeypatch):
    arms = ("--arms", "real only", "DreamDA, seed labels")
    command(*arms)
    earlier = tmp_path / "earlier.json"
    earlier.write_text((tmp_path / "out" / "tiny.json").read_text())
    monkeypatch.setattr(accuracy, "choose", None)  # would fail if it were called
    command(*arms, "--choices", str(earlier))
    assert (tmp_path / "out" / "tiny.json").read_text() == earlier.read_text()
    monkeypatch.setitem(TASKS, "fashion_mnist", replace(TASKS["fashion_mnist"], img2img=(0.7,)))
    with pytest.raises(SystemExit, match="today's candidates"):
        command(*arms, "--choices", str(earlier))


# --- statistics


def test_the_interval_matches_scipys():
    values = [0.61, 0.64, 0.58, 0.66]
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert np.isnan(interval([0.5])[1])


def test_gains_are_paired_by_rng_seed():
    runs = [{"arm": arm, "shots": 5, "rng_seed": seed, "test": value + gain, "accepted": None,
             "labels_right": None, "training_seconds": 2.0, "generation_seconds": 0.0}
            for arm, gain in (("base", 0.0), ("better", 0.1), ("best", 0.2))
            for seed, value in enumerate((0.3, 0.5, 0.7))]  # fmt: skip
    row = summary(runs, "better", 5, "base")
    assert row["gain"] == pytest.approx((0.1, 0.0), abs=1e-9)
    assert row["half"] > 0.4
    assert closed_gap(runs, "better", 5, "base", "best") == pytest.approx(0.5)
    assert "| better | 60.0 ± 49.7 | +10.0 ± 0.0 |" in table(runs, ["base", "better"], [5], "base")


def test_our_arms_are_compared_with_the_best_classical_one():
    values = {"real only": (0.3, 0.5), "RandAugment": (0.4, 0.6), "MixUp": (0.5, 0.3),
              "linear probe of the backbone": (0.9, 0.9), "DreamDA + AMST": (0.5, 0.5),
              "DreamDA, oracle labels": (0.7, 0.7)}  # fmt: skip
    runs = [{"arm": arm, "shots": 5, "rng_seed": seed, "test": value, "accepted": None,
             "labels_right": None, "training_seconds": 2.0, "generation_seconds": 0.0}
            for arm, pair in values.items() for seed, value in enumerate(pair)]  # fmt: skip
    arms = [arm for arm in ARMS if arm.name in values]
    ceilings = {"DreamDA + AMST": "DreamDA, oracle labels", "not run": ""}
    row, = comparisons(runs, arms, [5], "real only", ceilings)
    assert row["best_classical"] == "RandAugment" and row["margin"][0] == pytest.approx(0)
    assert row["gap_closed"] == pytest.approx(1 / 3)
    margin, gap = sentences(row, "real only")
    assert "minus RandAugment, the best classical arm: +0.0 ± 127.1" in margin
    assert "closes 33% of the gap between real only and DreamDA, oracle labels" in gap
    assert [arm.name for arm in ARMS if arm.is_classical] == [
        "flip + crop", "RandAugment", "TrivialAugment", "AugMix", "MixUp", "CutMix", "Cutout"]
