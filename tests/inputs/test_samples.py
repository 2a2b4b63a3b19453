"""Where the label, or the file name, of a sample is found, and which class it is."""

import numpy as np
import pytest
import torch
from pictures import picture
from torchvision import tv_tensors

from dreamda_aug.inputs.samples import (
    NO_LABEL,
    check_integers,
    class_number,
    find_labels,
    is_image,
    label_of,
    number_labels,
    read_sample,
    refuse_annotations,
)

IMAGE, BATCH = torch.rand(3, 4, 4), torch.rand(2, 3, 4, 4)
ARRAY, GREY = np.zeros((4, 4), np.uint8), picture("L")


@pytest.mark.parametrize("sample", [
    (IMAGE, 7), [IMAGE, 7], (IMAGE, 7, "more"), {"image": IMAGE, "label": 7},
    {"image": IMAGE, "LABELS": 7}, {0: IMAGE, "coarse_label": 1, "fine_label": 7},
    {"image": IMAGE, "class": 7, "my_label": 1}, {"file": "a", "picture": IMAGE, "target": 7},
])
def test_image_and_label_are_items_in_turn_or_under_the_keys_that_datasets_use(sample):
    assert find_labels(sample, "default") == find_labels([0, 7], lambda each: each[1]) == 7
    seed = read_sample(sample)
    made = seed.put(GREY, 4)
    again = read_sample(made)
    assert seed.image is IMAGE and seed.label == 7 and len(made) == len(sample)
    assert again.image is GREY and again.label == 4


def test_a_sample_may_have_no_label():
    for sample in (IMAGE, picture("L"), (IMAGE,), {"image": IMAGE, "id": 3}):
        assert find_labels(sample, "default") is find_labels((IMAGE, 7), None) is NO_LABEL


@pytest.mark.parametrize("labels, image, expected", [
    (3, picture("L"), 3), ("cat", BATCH, "cat"), (torch.tensor(3), BATCH, 3), ([3], ARRAY, [3]),
    (torch.tensor([3, 5]), BATCH, 5), (["cat", "dog"], BATCH, "dog"),
])
def test_each_image_of_a_batch_has_its_own_label(labels, image, expected):
    assert label_of(labels, 1, image) == expected


def test_an_integer_in_any_wrapping_is_a_class():
    for label in (3, np.uint8(3), np.array([[3]]), (3,), [[3]], torch.tensor(3)):
        assert class_number(label) == class_number(label, 4) == 3
        assert type(class_number(label)) is int


@pytest.mark.parametrize("label, message", [
    (2.0, "the number of one class .an integer, or a tensor, array or list of one .*, got 2.0"),
    (True, "got True"), ([0, 1, 0], r"got \[0, 1, 0\]"), (picture("L"), "got <PIL.Image"),
    (torch.eye(3)[1], r"got torch.float32 of shape \(3,\)"),
    (3, "one of the 3 classes, 0 to 2, got 3"), (-1, "one of the 3 classes, 0 to 2, got -1"),
    (10**400, r"got 1000+\.\.\."),
])
def test_what_is_no_class_is_refused_in_one_wording(label, message):
    with pytest.raises(ValueError, match=f"a label must be .*{message}"):
        class_number(label, 3)


def test_labels_are_numbered_by_their_names_or_are_numbers():
    assert number_labels(["b", "a", "b"], None) == ([1, 0, 1], ["a", "b"])
    assert number_labels(["b", 0], ["b", "a"]) == ([0, 0], ["b", "a"])
    assert number_labels([torch.tensor([2]), 0], None) == ([2, 0], None)
    # all of them are names where one is
    assert number_labels(["b", 1, ["a"]], None) == ([2, 0, 1], ["1", "a", "b"])
    with pytest.raises(ValueError, match=r"one of the class names \['b'\], got 'c'"):
        number_labels(["b", "c"], ["b"])


BOXES = torch.rand(5, 4)
DETECTION = {"boxes": BOXES, "labels": torch.ones(5, dtype=torch.int64)}


@pytest.mark.parametrize("sample, kind", [
    ((GREY, tv_tensors.Mask(torch.zeros(9, 9))), "masks"),
    ((GREY, tv_tensors.BoundingBoxes([[0, 0, 1, 1]], format="XYXY", canvas_size=(9, 9))), "bound"),
    (tv_tensors.Video(torch.zeros(2, 3, 9, 9)), "videos"),
    ((picture("RGB"), picture("P")), "masks"),  # as VOCSegmentation
    ((GREY, torch.zeros(24, 20).long()), "masks"), ((BATCH, torch.ones(2, 4, 4)), "masks"),
    ({"image": np.zeros((8, 9, 3)), "annotation": np.zeros((8, 9), int), "label": 1}, "masks"),
    ({"image": ARRAY, "mask": np.zeros((8, 8)), "bboxes": [], "label": 1}, "masks"),
    ((GREY, BOXES), "bounding boxes"), ((GREY, DETECTION), "bounding boxes"),
    ((GREY, {"annotation": {"object": [{"bndbox": {"xmin": "1"}}]}}), "bounding boxes"),
    ({"image": GREY, "objects": {"bbox": [[0, 0, 1, 1]], "category": [1]}}, "bounding boxes"),
])
def test_annotations_are_refused_in_every_form(sample, kind):
    with pytest.raises(TypeError, match=f"samples with {kind}.* a synthetic image keeps its class, "
                                        "not the place of things"):
        refuse_annotations(sample)


@pytest.mark.parametrize("sample", [
    (GREY, 1), (BATCH, torch.arange(2)), (BATCH, torch.rand(2, 10)), (IMAGE, torch.eye(10)[1]),
    {"image": GREY, "label": 1, "mask": None, "box": 7}, (IMAGE, torch.rand(3, 4, 4)),
    (picture("RGB"), picture("RGB")), {"image": IMAGE, "text": ["a"] * 9, "embedding": [0.1] * 9},
])
def test_labels_texts_and_second_views_are_no_annotations(sample):
    refuse_annotations(sample)


@pytest.mark.parametrize("shape, dtype, surely, maybe", [
    ((5, 4), "u1", True, True), ((5, 4), ">u2", True, True), ((5, 4), "f4", False, True),
    ((5, 4, 4), "u1", True, True), ((5, 4, 4), "f4", False, True), ((5, 4, 3), "f4", True, True),
    ((3, 5, 6), "u1", False, True), ((5, 4, 3), "?", False, True), ((5,), "u1", False, False),
    ((1, 1, 1), "u1", False, False), ((2, 5, 4, 3), "u1", False, False),
])
def test_an_array_is_surely_an_image_or_may_be_one(shape, dtype, surely, maybe):
    array = np.zeros(shape, dtype)
    assert (is_image(array, surely=True), is_image(array)) == (surely, maybe)


@pytest.mark.parametrize("sample, message", [
    ((GREY,), "is a tuple of length 1"), (GREY, "is a Image"),
    ((picture("RGB"), picture("RGB"), 0), "a label must be the number of one class"),
    ({"image": GREY}, "one 'image' and a 'label', sample 0 has 'image' .Image"),
    ({"a": picture("RGB"), "b": picture("RGB"), "label": 0}, "one 'image' and a 'label'"),
    ({"image": "a.png", "label": 0}, "sample 0 has the path 'a.png' under 'image': its transform"),
])
def test_samples_without_an_image_and_a_label_are_refused(sample, message):
    with pytest.raises(ValueError, match=message):
        read_sample(sample, 0)


def test_integers_are_one_for_each_image_and_in_range():
    assert check_integers("rows", [2, 0], 2, 0, 2).tolist() == [2, 0]
    assert check_integers("rows", np.array([5], np.uint8), 1).dtype == torch.int64
    for values, message in (
            (torch.rand(2), r"rows must be integers of shape \(2,\), got torch.float32.*argmax"),
            (torch.tensor([True, False]), "got torch.bool"), (torch.zeros(2, 5), r"\(2, 5\)"),
            ([0, 3], r"rows must lie in \[0, 2\], got 0 to 3"), ([-1, 0], "got -1 to 0")):
        with pytest.raises(ValueError, match=message):
            check_integers("rows", values, 2, 0, 2)
