"""Where the label, or the file name, of a sample is found."""

import copy

import numpy as np
import pytest
import torch
from pictures import picture

from dreamda_aug import DreamDAugment, load_model
from dreamda_aug.inputs.labels import find_file_names, find_labels, label_of

FAST = dict(preset="paper", steps=3, noise_scale=8.0, p=1.0, cache=None)
IMAGE, BATCH = torch.rand(3, 4, 4), torch.rand(2, 3, 4, 4)
ARRAY = np.zeros((4, 4), np.uint8)


@pytest.mark.parametrize("sample", [
    (IMAGE, 7), [IMAGE, 7], (IMAGE, 7, "more"), {"image": IMAGE, "label": 7},
    {"image": IMAGE, "LABELS": 7}, {0: IMAGE, "fine_label": 7, "coarse_label": 1},
])
def test_the_label_is_the_second_item_or_the_first_key_with_label_in_it(sample):
    assert find_labels(sample, "default") == 7


def test_a_function_finds_the_label_wherever_it_is():
    sample = {"image": IMAGE, "label": 1, "meta": {"y": 7}}
    assert find_labels(sample, lambda sample: sample["meta"]["y"]) == 7


@pytest.mark.parametrize("sample", [IMAGE, picture("L"), (IMAGE,), {"image": IMAGE, "class": 3}])
def test_a_sample_without_a_label_is_refused(sample):
    with pytest.raises(ValueError, match="found no label in the sample.*or a labels_getter"):
        find_labels(sample, "default")


def test_no_labels_getter_means_that_there_is_no_label():
    with pytest.raises(ValueError, match="labels_getter=None, but this model is conditioned"):
        find_labels((IMAGE, 7), None)


def test_a_file_name_stands_in_a_dict_or_is_found_by_a_function():
    assert find_file_names({"image": IMAGE, "file_name": "a.png"}, "default") == "a.png"
    assert find_file_names((IMAGE, "a.png"), lambda sample: sample[1]) == "a.png"
    assert find_file_names((IMAGE, "a.png"), "default") is None
    assert find_file_names({"image": IMAGE}, "default") is None


@pytest.mark.parametrize("labels, image, expected", [
    (3, picture("L"), 3), (3, IMAGE, 3), ("cat", IMAGE, "cat"), ("cat", BATCH, "cat"),
    (torch.tensor(3), IMAGE, 3), (torch.tensor([3, 5]), BATCH, 5), ([3, 5], BATCH, 5),
    (["cat", "dog"], BATCH, "dog"), (3, BATCH, 3), (None, BATCH, None),
    (np.array(3), ARRAY, 3), (np.array([3, 5]), BATCH, 5), (np.array([[3], [5]]), BATCH, 5),
    (np.array(["cat", "dog"]), BATCH, "dog"), (np.array([3]), ARRAY, [3]),
])
def test_each_image_of_a_batch_has_its_own_label(labels, image, expected):
    found = label_of(labels, 1, image)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("labels", [
    torch.rand(2, 4), torch.rand(2), torch.ones(2, 4).long(), np.ones((2, 4)), np.ones(2),
    np.ones((2, 4), int),
])
def test_labels_that_mixup_made_are_refused(labels):
    with pytest.raises(ValueError, match=r"must be class indices, got .* before MixUp and CutMix"):
        label_of(labels, 0, BATCH)


@pytest.mark.parametrize("sample, settings, message", [
    ((picture("RGB"), 2), dict(class_names=["a", "b"]), "label 2 is outside class_names"),
    ((picture("RGB"), "z"), dict(class_names=["a", "b"]), "label 'z' is not one of class_names"),
    ((picture("RGB"), 0), {}, "class_names must be given"),
    (picture("RGB"), dict(class_names=["a"]), "found no label in the sample"),
    ((picture("RGB"), 0), dict(class_names=["a"], labels_getter=None), "labels_getter=None, but"),
    ((torch.rand(2, 3, 16, 16), torch.rand(2, 4)), dict(class_names=["a"]), "before MixUp"),
])
def test_the_transform_refuses_bad_labels(sd_pipeline, sample, settings, message):
    with pytest.raises(ValueError, match=message):
        DreamDAugment(load_model(copy.deepcopy(sd_pipeline)), **FAST, **settings)(sample)
