"""The study on a folder so small that it takes seconds."""

import pytest
import torch
from pipelines import pixel_pipeline
from torch import nn

from dreamda_aug import Synthesizer, evaluate
from dreamda_aug.amst import LabelPrior
from dreamda_aug.evaluation.protocol import _draw
from dreamda_aug.evaluation.training import class_accuracy, rand_augment
from dreamda_aug.models.conditioning import ClassConditioning


@pytest.fixture
def synthesizer():
    return Synthesizer(pixel_pipeline(), cache=None, steps=3, strength=0.6, replay=0.5,
                       noise_scale=1.0)


def marked(count: int) -> list[tuple[torch.Tensor, int]]:
    """Images whose upper or lower half is bright."""
    rows = []
    for number in range(count):
        image = torch.full((1, 16, 16), 0.2)
        image[:, 8 * (number % 2) : 8 * (number % 2) + 8] = 0.9
        rows.append((image + number / 1000, number % 2))
    return rows


def tiny(channels: int, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(),
                         nn.Linear(16 * channels, num_classes))


def test_all_arms_are_trained_alike_and_the_same_call_gives_the_same_numbers(synthesizer):
    options = {"shots": 2, "draws": 2, "replicas": 2, "steps": 8, "batch_size": 6,
               "classifier": tiny, "flip": 0.0, "learning_rate": 0.1}
    found = evaluate(marked(16), synthesizer, **options)
    assert list(found.accuracies) == ["real only", "RandAugment", "DreamDA, seed labels",
                                      "DreamDA, linear probe", "DreamDA + AMST"]
    assert all(len(values) == 2 for values in found.accuracies.values())
    assert sum(found.accuracies["real only"]) / 2 > 0.9  # it learned the halves
    assert found.same_label["DreamDA, seed labels"] == 1
    assert found.settings["test_images"] == "12"
    assert found.main == "DreamDA + AMST"  # this model knows no classes
    assert evaluate(marked(16), synthesizer, **options) == found


def test_labeled_and_test_images_are_disjoint_and_cover_all():
    labels = torch.arange(30) % 3
    chosen, test = _draw(labels, 4, 0)
    assert labels[chosen].bincount().tolist() == [4, 4, 4]
    assert sorted(chosen.tolist() + test.tolist()) == list(range(30))
    assert _draw(labels, 4, 1)[0].tolist() != chosen.tolist()


def test_what_cannot_be_studied_is_refused(synthesizer):
    with pytest.raises(ValueError, match=r"more than 8 images of each class.*class '0' has 8"):
        evaluate(marked(16), synthesizer, shots=8)
    with pytest.raises(ValueError, match="steps must be a multiple of 8, got 12"):
        evaluate(marked(16), synthesizer, steps=12)
    with pytest.raises(ValueError, match="shots must be"):
        evaluate(marked(16), synthesizer, shots=1)


def test_accuracy_is_averaged_over_classes_and_views_stay_in_range():
    images = torch.rand(4, 1, 16, 16)
    always_first = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    nn.init.zeros_(always_first[1].weight)
    always_first[1].bias.data = torch.tensor([1.0, 0.0])
    assert class_accuracy(always_first, images, torch.tensor([0, 0, 0, 1]), "cpu") == 0.5
    view = rand_augment(images)
    assert view.shape == images.shape and view.min() >= 0 and view.max() <= 1


def test_dials_are_measured_on_the_labeled_images_of_each_draw(measured, few_choices):
    synthesizer = Synthesizer(pixel_pipeline(), cache=None, steps=3)
    options = {"shots": 4, "draws": 2, "replicas": 1, "steps": 8, "batch_size": 6,
               "classifier": tiny}
    with pytest.warns(match="was not calibrated for these settings yet"):
        evaluate(marked(16), synthesizer, calibrate=False, **options)
    assert not measured
    evaluate(marked(16), synthesizer, **options)
    digests = {sample.digest for _, sample in measured}
    assert len(digests) == 2 and all(len(sample.images) == 8 for _, sample in measured)


def test_classes_are_asked_for_by_name(class_folder, monkeypatch):
    class Named(list):
        classes = ["up", "left"]

    asked = set()
    embed = ClassConditioning.embed
    monkeypatch.setattr(ClassConditioning, "embed",
                        lambda self, given: asked.update(given) or embed(self, given))
    synthesizer = Synthesizer(class_folder, cache=None, steps=3, strength=0.6, replay=0.5,
                              noise_scale=1.0)
    options = {"shots": 2, "draws": 2, "replicas": 1, "steps": 8, "batch_size": 6,
               "classifier": tiny}
    asked_of = []
    estimate = LabelPrior.estimate
    monkeypatch.setattr(LabelPrior, "estimate", lambda asked, *rest, **more: (
        asked_of.append(asked.tolist()), estimate(asked, *rest, **more))[1])
    found = evaluate(Named(marked(10)), synthesizer, **options)
    assert asked == {"up", "left", None}
    assert asked_of == 2 * [[0, 0, 1, 1]]  # AMST's heads know it, in each draw
    # the model is told the class, so the verdict is about seed labels
    assert found.main == "DreamDA, seed labels"
    monkeypatch.setattr(Named, "classes", ["up", "elsewhere"])
    with pytest.warns(match="does not know the class 'elsewhere'"):
        assert evaluate(Named(marked(10)), synthesizer, **options).main == "DreamDA + AMST"
    assert len(asked_of) == 2  # and do not where it was not told


def test_a_model_that_must_be_told_the_class_is_studied_too():
    """It has no branch without a class, whose features the probe would take."""
    class Named(list):
        classes = ["0", "1"]

    synthesizer = Synthesizer(pixel_pipeline(num_classes=2), cache=None, steps=3,
                              strength=0.6, replay=0.5, noise_scale=1.0)
    assert not synthesizer.model.guidable
    found = evaluate(Named(marked(10)), synthesizer, shots=2, draws=2, replicas=1, steps=8,
                     batch_size=6, classifier=tiny)
    assert len(found.accuracies["DreamDA, linear probe"]) == 2
