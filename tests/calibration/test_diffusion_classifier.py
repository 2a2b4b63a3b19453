"""The diffusion model as a classifier, on a model whose right answer is known."""

import pytest
import torch
from pipelines import pixel_pipeline

from dreamda_aug import load_model
from dreamda_aug.amst import SingleHeadLabeler
from dreamda_aug.calibration.diffusion_classifier import DiffusionClassifier

# Three classes of images: grey values; the model below denoises towards its class's value.
VALUES = torch.tensor([0.1, 0.5, 0.9])


class Oracle:
    """A model that predicts the noise as if the image were of the class it is asked for."""

    def __init__(self):
        self.real = load_model(pixel_pipeline(num_classes=4), null_class=3, device=None)
        self.rows = 0

    def __getattr__(self, name):
        return getattr(self.real, name)

    def predict(self, x_t, t, condition):
        self.rows += len(x_t)
        schedule = self.real.schedule(self.levels, 1.0)
        level = int((schedule.timesteps == t).nonzero())
        clean = (VALUES * 2 - 1)[condition["class_labels"]][:, None, None, None].expand_as(x_t)
        return schedule.noise_of(clean, x_t, level)


def make(stages=((4, 2), (8, 1)), **options):
    model = Oracle()
    model.levels = stages[-1][0]
    return DiffusionClassifier(model, [0, 1, 2], stages=stages, **options), model


def images(labels):
    noise = 0.05 * torch.randn(len(labels), 1, 16, 16,
                               generator=torch.Generator().manual_seed(0))
    return (VALUES[labels][:, None, None, None] + noise).clamp(0, 1)


def test_images_get_the_class_under_which_they_are_denoised_best():
    labels = torch.tensor([0, 1, 2, 2, 0])
    classifier, _ = make()
    assert torch.equal(classifier(images(labels)).argmax(1), labels)


def test_stages_save_rows_and_keep_the_answer():
    labels = torch.tensor([0, 1, 2, 1])
    staged, with_stages = make(((2, 1), (8, 1)))
    whole, without = make(((8, 1),))
    assert torch.equal(staged(images(labels)).argmax(1), whole(images(labels)).argmax(1))
    assert with_stages.rows == 4 * (2 * 3 + 6 * 1) and without.rows == 4 * 8 * 3


def test_an_answer_does_not_depend_on_batch_mates():
    labels = torch.tensor([0, 1, 2])
    classifier, _ = make(batch_size=4)
    together = classifier(images(labels))
    alone = torch.cat([classifier(each[None]) for each in images(labels)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_the_temperature_makes_labeled_images_likely():
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    classifier, _ = make()
    before = classifier(images(labels)).softmax(1).amax(1).mean()
    assert classifier.fit_temperature(images(labels), labels) < 1
    assert classifier(images(labels)).softmax(1).amax(1).mean() > before
    found = SingleHeadLabeler(classifier, confidence_threshold=0.5).label(images(labels))
    assert torch.equal(found.labels, labels)


@pytest.mark.parametrize("options, message", [
    (dict(conditions=[0]), "conditions must be two or more, got 1"),
    (dict(stages=((4, 1), (8, 2))), "stages must try more noise levels on fewer classes"),
    (dict(stages=((0, 1),)), "stages must be an integer >= 1, got 0"),
])
def test_arguments_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionClassifier(Oracle(), **{"conditions": [0, 1], **options})
