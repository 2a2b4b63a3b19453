"""The wrapper on models whose final layer lies in each of the places that libraries have for it."""

import pytest
import torch
from torch import nn
from torchvision import models

from dreamda_aug.amst import AMSTWrapper

CLASSES = 5

# Small members, or small copies made by the family's own class; with them the side of an image
# they take and the name of their final layer.
TORCHVISION = {
    "alexnet": (lambda: models.alexnet(num_classes=CLASSES), 64, "classifier.6"),
    "densenet": (
        lambda: models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=CLASSES), 32, "classifier"),
    "googlenet": (lambda: models.googlenet(num_classes=CLASSES, init_weights=False), 64, "fc"),
    "maxvit": (
        lambda: models.MaxVit((32, 32), 16, 2, [16, 32], [1, 1], 8, 0.0, num_classes=CLASSES),
        32, "classifier.5"),
    "mobilenet_v3": (lambda: models.mobilenet_v3_small(num_classes=CLASSES), 32, "classifier.3"),
    "resnet": (lambda: models.resnet18(num_classes=CLASSES), 32, "fc"),
    "squeezenet": (lambda: models.squeezenet1_1(num_classes=CLASSES), 32, "classifier.1"),
    "swin": (
        lambda: models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=CLASSES),
        32, "head"),
    "vit": (
        lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES),
        32, "heads.head"),
}

TIMM = {
    "resnetv2_18": ({}, 32, "head.fc"),
    "ghostnetv2_100": ({}, 64, "classifier"),
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 32, "head"),
    "deit_tiny_distilled_patch16_224": ({"img_size": 32, "depth": 2}, 32, "head"),
    "mobilevit_xxs": ({}, 64, "head.fc"),
}


def same(images):
    return images


def make_timm(name):
    timm = pytest.importorskip("timm", reason="timm is an extra")
    return timm.create_model(name, pretrained=False, num_classes=CLASSES, **TIMM[name][0])


def logits_of(output):
    return output if isinstance(output, torch.Tensor) else output.logits


def check_family(model, side, head_name):
    """Everything that has to hold for one model; one instance, since building is the slow part."""
    images, targets = torch.rand(2, 3, side, side), torch.tensor([0, 4])
    model.eval()
    keys = list(model.state_dict())
    with torch.no_grad():
        expected = model(images)
    wrapper = AMSTWrapper(model, weak=same, strong=same)
    assert wrapper._reader.name == head_name
    assert wrapper.num_classes == CLASSES
    with torch.no_grad():
        assert torch.equal(wrapper(images), expected)
        channels_last = images.contiguous(memory_format=torch.channels_last)
        # another memory order may sum in another order.
        torch.testing.assert_close(wrapper(channels_last), expected, atol=1e-4, rtol=1e-4)
    assert wrapper.label(images).labels.shape == (2,)

    wrapper.train()
    answer = wrapper(images)
    assert logits_of(answer).shape == (2, CLASSES)
    wrapper.pretraining_loss(images, targets).backward()
    first = next(model.parameters())
    assert first.grad is not None and first.grad.isfinite().all()
    wrapper.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = wrapper.losses(images, targets, images[:1])
    losses.total.backward()
    assert losses.total.dtype == torch.float32
    assert wrapper._reader.layer.weight.grad.isfinite().all()

    plain = wrapper.to_classifier()
    assert plain is model and list(plain.state_dict()) == keys
    assert not any(m._forward_pre_hooks for m in plain.modules())


@pytest.mark.parametrize("family", TORCHVISION)
def test_torchvision_family_is_wrapped_trained_and_given_back(family):
    make, side, head_name = TORCHVISION[family]
    torch.manual_seed(0)
    check_family(make(), side, head_name)


@pytest.mark.parametrize("name", TIMM)
def test_timm_model_is_wrapped_trained_and_given_back(name):
    _, side, head_name = TIMM[name]
    torch.manual_seed(0)
    check_family(make_timm(name), side, head_name)


def test_auxiliary_logits_are_answered_in_training_as_the_model_does():
    model = models.googlenet(num_classes=CLASSES, init_weights=False)
    output = AMSTWrapper(model).train()(torch.rand(2, 3, 64, 64))
    assert type(output).__name__ == "GoogLeNetOutputs" and output.aux_logits1 is not None


def test_a_transformers_classifier_is_wrapped_too():
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=8, num_labels=CLASSES,
    )  # fmt: skip
    wrapper = AMSTWrapper(transformers.ViTForImageClassification(config))
    assert wrapper._reader.name == "classifier"
    images = torch.rand(3, 3, 32, 32)
    wrapper.losses(images, torch.tensor([0, 1, 2]), images).total.backward()


class Own(nn.Module):
    """A classifier whose layers have names of their own, the last one registered first."""

    def __init__(self, hidden):
        super().__init__()
        self.classify = nn.Linear(hidden, CLASSES)
        self.trunk = nn.Conv2d(3, 6, 3)
        self.inner = nn.Linear(6, hidden)

    def forward(self, images):
        return self.classify(self.inner(self.trunk(images).mean((2, 3))).relu())


def test_a_wrong_guess_is_refused_with_the_candidates_and_naming_the_layer_helps():
    images = torch.rand(4, 3, 8, 8)
    guessed = AMSTWrapper(Own(7))
    message = r'logits of 5 classes, but "inner" has 7: .*Candidates.*"classify" \(Linear 7 -> 5\)'
    with pytest.raises(ValueError, match=message):
        guessed.label(images)
    with pytest.raises(ValueError, match=r'was not found: name it, AMSTWrapper\(model, head="…"'):
        AMSTWrapper(Own(CLASSES))  # two layers with as many outputs
    assert AMSTWrapper(Own(7), CLASSES)._reader.name == "classify"
    model = Own(CLASSES)
    for head in ("classify", model.classify):
        wrapper = AMSTWrapper(model, head=head)
        wrapper.losses(images, torch.arange(4), images).total.backward()


def test_a_model_of_flat_images_is_understood():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    wrapper = AMSTWrapper(model)
    assert wrapper._reader.name == "3"
    images = torch.rand(4, 1, 8, 8)
    wrapper.losses(images, torch.arange(4), images).total.backward()


def test_a_distilled_model_of_transformers_has_two_final_layers_and_is_refused():
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    config = transformers.DeiTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=8, num_labels=CLASSES)
    with pytest.raises(ValueError, match='"cls_classifier".*"distillation_classifier"'):
        AMSTWrapper(transformers.DeiTForImageClassificationWithTeacher(config))


def test_bfloat16_weights_get_bfloat16_heads():
    wrapper = AMSTWrapper(models.squeezenet1_1(num_classes=CLASSES).bfloat16(), strong=same)
    images = torch.rand(2, 3, 32, 32).bfloat16()
    losses = wrapper.losses(images, torch.tensor([0, 1]), images)
    losses.total.backward()
    assert wrapper.auxiliary_heads[0].weight.dtype == torch.bfloat16
    assert losses.supervised.dtype == torch.float32
