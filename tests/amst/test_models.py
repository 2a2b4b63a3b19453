"""The wrapper on one model of every classification family of torchvision and on timm's."""

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig

from dreamda_aug.amst import AMSTWrapper, HeadViews

CLASSES = 5

# Small members, or small copies made by the family's own class; with them the side of an image
# they take and the name of their final layer.
TORCHVISION = {
    "alexnet": (lambda: models.alexnet(num_classes=CLASSES), 64, "classifier.6"),
    "convnext": (
        lambda: models.ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)],
                                num_classes=CLASSES), 32, "classifier.2"),
    "densenet": (
        lambda: models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=CLASSES), 32, "classifier"),
    "efficientnet": (lambda: models.efficientnet_b0(num_classes=CLASSES), 32, "classifier.1"),
    "efficientnet_v2": (lambda: models.efficientnet_v2_s(num_classes=CLASSES), 32, "classifier.1"),
    "googlenet": (lambda: models.googlenet(num_classes=CLASSES, init_weights=False), 64, "fc"),
    "inception_v3": (
        lambda: models.inception_v3(num_classes=CLASSES, init_weights=False), 299, "fc"),
    "maxvit": (
        lambda: models.MaxVit((32, 32), 16, 2, [16, 32], [1, 1], 8, 0.0, num_classes=CLASSES),
        32, "classifier.5"),
    "mnasnet": (lambda: models.mnasnet0_5(num_classes=CLASSES), 32, "classifier.1"),
    "mobilenet_v2": (lambda: models.mobilenet_v2(num_classes=CLASSES), 32, "classifier.1"),
    "mobilenet_v3": (lambda: models.mobilenet_v3_small(num_classes=CLASSES), 32, "classifier.3"),
    "regnet_x": (lambda: models.regnet_x_400mf(num_classes=CLASSES), 64, "fc"),
    "regnet_y": (lambda: models.regnet_y_400mf(num_classes=CLASSES), 64, "fc"),
    "resnet": (lambda: models.resnet18(num_classes=CLASSES), 32, "fc"),
    "resnet_bottleneck": (lambda: models.resnet50(num_classes=CLASSES), 32, "fc"),
    "resnext": (lambda: models.resnext50_32x4d(num_classes=CLASSES), 32, "fc"),
    "wide_resnet": (
        lambda: models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], CLASSES,
                              width_per_group=128), 32, "fc"),
    "shufflenet": (lambda: models.shufflenet_v2_x0_5(num_classes=CLASSES), 32, "fc"),
    "squeezenet": (lambda: models.squeezenet1_1(num_classes=CLASSES), 32, "classifier.1"),
    "swin": (
        lambda: models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=CLASSES),
        32, "head"),
    "swin_v2": (
        lambda: models.SwinTransformer(
            [4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=CLASSES,
            block=models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=models.swin_transformer.PatchMergingV2), 32, "head"),
    "vgg": (
        lambda: models.VGG(models.vgg.make_layers([8, "M", 16, "M", 512, "M"]), CLASSES,
                           init_weights=False), 32, "classifier.6"),
    "vit": (
        lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES),
        32, "heads.head"),
}  # fmt: skip

TIMM = {
    "resnet10t": ({}, 32, "fc"),
    "resnetv2_18": ({}, 32, "head.fc"),
    "convnext_atto": ({}, 32, "head.fc"),
    "efficientnet_lite0": ({}, 32, "classifier"),
    "ghostnetv2_100": ({}, 64, "classifier"),
    "mobilenetv4_conv_small": ({}, 32, "classifier"),
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 32, "head"),
    "deit_tiny_distilled_patch16_224": ({"img_size": 32, "depth": 2}, 32, "head"),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 1, 1)},
        64, "head.fc"),
    "coatnet_pico_rw_224": ({"img_size": 64}, 64, "head.fc"),
    "mobilevit_xxs": ({}, 64, "head.fc"),
    "edgenext_xx_small": ({}, 64, "head.fc"),
    "mixer_s32_224": ({"img_size": 32}, 32, "head"),
}  # fmt: skip


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


def test_every_torchvision_classifier_family_is_in_the_table():
    builders = models.list_models(module=models)
    families = {
        "".join(letter for letter in name.split("_")[0] if not letter.isdigit())
        for name in builders
    }
    tested = {name.split("_")[0].removesuffix("net") for name in TORCHVISION}
    for family in families:
        assert any(family.startswith(name) for name in tested), family


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


def test_the_final_layer_is_found_whatever_the_order_of_registration():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.classify = nn.Linear(8, CLASSES)
            self.hidden = nn.Linear(6, 8)
            self.trunk = nn.Conv2d(3, 6, 3)
            self.twin = nn.Linear(8, CLASSES)

        def forward(self, images):
            return self.classify(self.hidden(self.trunk(images).mean((2, 3))).relu())

    assert AMSTWrapper(Backwards())._reader.name == "classify"


@pytest.mark.parametrize("sides", [(8, 8), (28, 28)])
def test_a_model_of_flat_images_is_understood(sides):
    size = sides[0] * sides[1]
    model = nn.Sequential(nn.Flatten(), nn.Linear(size, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    wrapper = AMSTWrapper(model)
    assert wrapper._reader.name == "3"
    images = torch.rand(4, 1, *sides)
    wrapper.losses(images, torch.arange(4), images).total.backward()


def test_a_model_that_no_probe_fits_is_wrapped_at_its_last_layer_or_refused():
    class Odd(nn.Module):
        def __init__(self, twins):
            super().__init__()
            self.trunk = nn.Conv2d(3, 4, 3)
            self.first = nn.Linear(4, CLASSES if twins else 7)
            self.last = nn.Linear(4 if twins else 7, CLASSES)

        def forward(self, images):
            if images.shape[-2:] != (13, 17):
                raise ValueError("only 13 by 17")
            features = self.trunk(images).mean((2, 3))
            return self.last(features if self.first.out_features == CLASSES else
                             self.first(features))  # fmt: skip

    assert AMSTWrapper(Odd(twins=False))._reader.name == "last"
    message = r'was not found.*head="…".*Candidates.*"first" \(Linear 4 -> 5\), "last"'
    with pytest.raises(ValueError, match=message):
        AMSTWrapper(Odd(twins=True))
    wrapper = AMSTWrapper(Odd(twins=True), head="last")
    images = torch.rand(2, 3, 13, 17)
    wrapper.losses(images, torch.tensor([0, 1]), images).total.backward()


def test_an_unused_lazy_model_is_refused_with_the_way_out():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES))
    with pytest.raises(ValueError, match="lazily initialised model once before wrapping"):
        AMSTWrapper(model)
    model(torch.rand(2, 3, 4, 4))
    assert AMSTWrapper(model).num_classes == CLASSES


def test_finding_the_final_layer_leaves_the_model_as_it_was():
    model = models.resnet18(num_classes=CLASSES).train()
    model.layer1.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    wrapper = AMSTWrapper(model, views=HeadViews(("weak",)))
    assert wrapper.model.training and not wrapper.model.layer1.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    del wrapper
    assert state.shape == torch.random.get_rng_state().shape
    assert sum(len(m._forward_hooks) for m in model.modules()) == 0


def test_bfloat16_weights_get_bfloat16_heads():
    wrapper = AMSTWrapper(models.squeezenet1_1(num_classes=CLASSES).bfloat16(), strong=same)
    images = torch.rand(2, 3, 32, 32).bfloat16()
    losses = wrapper.losses(images, torch.tensor([0, 1]), images)
    losses.total.backward()
    assert wrapper.auxiliary_heads[0].weight.dtype == torch.bfloat16
    assert losses.supervised.dtype == torch.float32
