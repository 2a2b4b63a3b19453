"""Whether a report says which share of labels was kept, and of what."""

import re
import shutil

import pytest
import torch
from pipelines import pixel_pipeline
from report.test_overview import figures, summary
from torchvision.transforms.v2.functional import to_pil_image

from dreamda_aug import Synthesizer
from dreamda_aug.cli.main import main
from dreamda_aug.expansion import expand, read_manifest
from dreamda_aug.expansion.manifest import read_metadata
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.report.judging import judge_labels
from dreamda_aug.statistics import wilson_interval


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    pixel_pipeline().save_pretrained(folder)
    return folder


def lights(count):
    """Dark and bright noise, by class."""
    images = [0.6 * (i % 2) + 0.4 * torch.rand(
        1, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    return open_seed_images(images, labels=[i % 2 for i in range(count)])


def judged(root, source, **changes):
    made = {line.seed_index for line in read_manifest(root)}
    return judge_labels(root, read_metadata(root) | changes, source, made)


@pytest.fixture(scope="module")
def dataset(model, tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "out"
    expand(lights(80), root, Synthesizer(model, "paper", steps=2, noise_scale=0.0, cache=None,
                                         device="cpu"), 4, calibrate=False)
    return root


def test_a_stated_sample_even_over_classes_is_judged_against_its_seed_images(dataset):
    found = judged(dataset, lights(80))
    # without noise the replicas are their seed images
    assert found.share == 1 and found.classes == 2
    assert found.seed_images == 64 and found.images == 192
    assert found.interval == wilson_interval(1.0, 64) and "out of fold" in found.judge
    assert judged(dataset, lights(80)) == found


def test_labels_that_changed_are_seen(dataset, tmp_path):
    """Half of the images are put in the place of images of the other class."""
    root = shutil.copytree(dataset, tmp_path / "out")
    for line in read_manifest(root):
        if line.seed_index % 4 < 2:
            other = f"{1 - line.label}/{line.seed_index ^ 1:08d}_{line.replica:04d}.png"
            shutil.copy(dataset / other, root / line.file)
    found = judged(root, lights(80))
    assert 0.4 < found.share < 0.6 and found.interval[0] < found.share < found.interval[1]


@pytest.mark.parametrize("source, changes, why", [
    (None, {}, "the seed images are not at hand"),
    (open_seed_images([torch.rand(1, 16, 16)] * 2, labels=[0, 0]), {}, "there is one class alone"),
    (lights(80), {"paths": {"model": "org/model", "lora": None, "source": None}},
     "could not be loaded: org/model is not on this machine"),
    (lights(4), {}, "the judge gets . seed images right, and 6 are needed"),
])
def test_where_it_cannot_be_judged_the_reason_is_given(dataset, source, changes, why):
    assert re.search(why, judged(dataset, source, **changes))


def test_a_model_that_has_moved_judges_from_where_it_is_named(model, tmp_path):
    for number in range(20):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(0.6 * (number % 2) + 0.4 * torch.rand(1, 16, 16)).save(path)
    root, moved = tmp_path / "out", tmp_path / "new place" / "model"
    expand(tmp_path / "train", root, Synthesizer(
        shutil.copytree(model, tmp_path / "model"), "paper", steps=2, noise_scale=0.0, cache=None,
        device="cpu"), 1, calibrate=False)
    shutil.move(tmp_path / "model", moved)
    for place in (None, tmp_path / "no such" / "model"):
        value, note, _ = summary(root, model=place)["Labels kept"]
        assert value == "not judged" and str(tmp_path) not in note
        assert "not be loaded: model is not on this machine; give model (--model)." in note
    assert main(["report", str(root), "--model", str(moved)]) == 0
    value, note, _ = figures((root / "report.html").read_text())["Labels kept"]
    assert value == "100.0%" and "95 % interval" in note and "in 2 classes" in note
    assert "judged by a linear probe on the model's own features, out of fold" in note
