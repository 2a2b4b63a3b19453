"""Whether a report says which share of labels was kept, and of what."""

import re
import shutil

import pytest
import torch
from pipelines import pixel_pipeline
from report.test_overview import summary
from torch.utils.data import Subset

from dreamda_aug import Synthesizer
from dreamda_aug.bundled import FashionMNISTSample
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


def test_the_page_says_what_was_judged_and_by_what(tmp_path):
    data = FashionMNISTSample("train")
    few = Subset(data, [i for i in range(len(data)) if data.targets[i] in (0, 1)])
    source = open_seed_images(few, class_names=data.classes)
    expand(source, tmp_path / "out", Synthesizer("bundled", "fast", cache=None, device="cpu"), 1)
    value, note, _ = summary(tmp_path / "out", source=source)["Labels kept"]
    assert value.endswith("%") and "95 % interval" in note and "in 2 classes" in note
    assert "judged by a linear probe on the model's own features, out of fold" in note
    off = summary(tmp_path / "out", source=source, judge=False)
    assert off["Labels kept"][0] == "not judged"
