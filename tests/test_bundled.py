"""The images and the judge that come with the package."""

import pytest

from dreamda_aug.bundled import FashionMNISTSample, fashion_mnist_judge


def test_the_judge_is_right_on_most_images_it_never_saw():
    sample = FashionMNISTSample("test")
    answers = fashion_mnist_judge()(sample.data[:, None].float() / 255).argmax(1)
    assert (answers.numpy() == sample.targets).mean() > 0.85


def test_the_sample_is_balanced_and_refuses_other_splits():
    for split, per_class in (("train", 20), ("test", 30)):
        sample = FashionMNISTSample(split)
        assert [sample.targets.count(c) for c in range(10)] == [per_class] * 10
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        FashionMNISTSample("val")
