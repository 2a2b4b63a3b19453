"""The classifiers of the accuracy study."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from benchmarks.accuracy.classifiers import CLASSIFIERS
from benchmarks.accuracy.tasks import TASKS


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_answers_with_the_tasks_classes(name, tmp_path, tiny):
    pretrained, weights = name == "resnet18_pretrained", None
    if pretrained:
        weights = tmp_path / "weights.safetensors"
        save_file(resnet18().state_dict(), weights)
    channels = 3 if pretrained else 1
    task = replace(tiny, classifier=name, channels=channels)
    classifier = CLASSIFIERS[name](task, weights).eval()
    assert classifier(torch.rand(2, channels, 16, 16)).shape == (2, 3)


def test_a_pretrained_task_without_weights_is_refused():
    with pytest.raises(SystemExit, match=r"caltech101_pretrained needs --weights FILE"):
        CLASSIFIERS["resnet18_pretrained"](TASKS["caltech101_pretrained"], None)
