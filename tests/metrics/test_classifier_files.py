"""Classifiers on disk as feature functions, against torchvision and timm."""

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models
from torchvision.transforms.v2 import functional as F

from dreamda_aug.bundled import FashionMNISTSample, fashion_mnist_judge
from dreamda_aug.metrics.classifier_files import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_classifier,
    open_classifier_features,
)


def test_torchvisions_weights_give_the_input_of_their_final_layer(tmp_path):
    model = models.shufflenet_v2_x0_5(num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    features = open_classifier_features(f"shufflenet_v2_x0_5:{tmp_path}/w.safetensors")
    images = torch.rand(2, 3, 50, 50)
    seen = F.normalize(F.resize(images, [224, 224], antialias=True), IMAGENET_MEAN, IMAGENET_STD)
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(features(images), model(seen))


def test_timms_architectures_open_where_torchvision_has_none(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_resnet", pretrained=False, num_classes=4).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    found = build_classifier("test_resnet", tmp_path / "w.safetensors")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(found(images), model(images))


def test_the_bundled_judge_sees_colour_images_in_grey():
    grey = FashionMNISTSample("test").data[:3, None].float() / 255
    judge = fashion_mnist_judge()
    found = open_classifier_features("bundled")(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found, judge[:-2](grey))


@pytest.mark.parametrize("text, error, message", [
    ("judge.pt", ValueError, r"bundled or ARCHITECTURE:WEIGHTS.safetensors, got 'judge.pt'"),
    ("resnet18:none.safetensors", FileNotFoundError, r"none.safetensors: expected a classifier"),
    ("resnet99:FILE", ValueError, r"neither torchvision nor timm has a classifier 'resnet99'"),
    ("resnet18:FILE", ValueError, r"expected weights of resnet18: .*Missing key"),
])  # fmt: skip
def test_what_is_no_classifier_is_refused(tmp_path, text, error, message):
    file = tmp_path / "w.safetensors"
    save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(error, match=message):
        open_classifier_features(text.replace("FILE", str(file)))
