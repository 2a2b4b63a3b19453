"""The wrapper on models whose final layer lies in each of the places that libraries have for it."""

import pytest
import torch
from torchvision import models

from dreamda_aug.amst import AMSTWrapper

CLASSES = 5

# Small members, or small copies made by the family's own class; with them the side of an image
# they take and the name of their final layer.
TORCHVISION = {
    "googlenet": (lambda: models.googlenet(num_classes=CLASSES, init_weights=False), 64, "fc"),
    "squeezenet": (lambda: models.squeezenet1_1(num_classes=CLASSES), 32, "classifier.1"),
    "vit": (
        lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES),
        32, "heads.head"),
}
TIMM = {
    "deit_tiny_distilled_patch16_224": ({"img_size": 32, "depth": 2}, 32, "head"),
    "mobilevit_xxs": ({}, 64, "head.fc"),
}


def same(images):
    return images


def make(name):
    torch.manual_seed(0)
    if name in TORCHVISION:
        build, *rest = TORCHVISION[name]
        return build(), *rest
    timm = pytest.importorskip("timm", reason="timm is an extra")
    options, *rest = TIMM[name]
    return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options), *rest


@pytest.mark.parametrize("name", [*TORCHVISION, *TIMM])
def test_a_model_of_a_library_is_wrapped_trained_and_given_back(name):
    model, side, head_name = make(name)
    images, targets = torch.rand(2, 3, side, side), torch.tensor([0, 4])
    model.eval()
    keys = list(model.state_dict())
    wrapper = AMSTWrapper(model, weak=same, strong=same)
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(wrapper(images), expected)
        channels_last = images.contiguous(memory_format=torch.channels_last)
        # another memory order may sum in another order.
        torch.testing.assert_close(wrapper(channels_last), expected, atol=1e-4, rtol=1e-4)
    assert (wrapper._reader.name, wrapper.num_classes) == (head_name, CLASSES)
    assert wrapper.label(images).labels.shape == (2,)

    wrapper.train()
    assert type(wrapper(images)) is type(model(images))  # auxiliary logits as the model has them
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


def test_a_transformers_classifier_is_wrapped_too():
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=8, num_labels=CLASSES)
    wrapper = AMSTWrapper(transformers.ViTForImageClassification(config))
    assert wrapper._reader.name == "classifier"
    images = torch.rand(3, 3, 32, 32)
    wrapper.losses(images, torch.tensor([0, 1, 2]), images).total.backward()


def test_bfloat16_weights_get_bfloat16_heads():
    wrapper = AMSTWrapper(models.squeezenet1_1(num_classes=CLASSES).bfloat16(), strong=same)
    images = torch.rand(2, 3, 32, 32).bfloat16()
    losses = wrapper.losses(images, torch.tensor([0, 1]), images)
    losses.total.backward()
    assert wrapper.auxiliary_heads[0].weight.dtype == torch.bfloat16
    assert losses.supervised.dtype == torch.float32
