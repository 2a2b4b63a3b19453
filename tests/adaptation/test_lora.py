"""LoRA layers against peft's own arithmetic, and the frozen prior behind them."""

import pytest
import torch
from pipelines import pixel_pipeline

from dreamda_aug.adaptation.lora import AdaptedModel, ClassRows, own_model
from dreamda_aug.adaptation.training_state import copied, restore
from dreamda_aug.errors import ModelError
from dreamda_aug.models.adapted import base_identity, check_base
from dreamda_aug.models.unet import UNetModel

X = torch.linspace(-1, 1, 2 * 256).view(2, 1, 16, 16)
T = torch.tensor([10, 700])


def adapted(model, rng_seed=0):
    return AdaptedModel(model, [], "", {}, 2, rng_seed)


def shaken(model):
    """An adapted model whose parameters are all different from their start."""
    model = adapted(model)
    generator = torch.Generator().manual_seed(3)
    restore(model.kept, {name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
                         for name, tensor in copied(model.kept).items()})
    return model


def test_lora_begins_as_nothing_and_can_be_switched_off_exactly():
    plain = UNetModel(pixel_pipeline())
    expected = plain.denoise(X, T, {}).detach()
    fresh = adapted(own_model(plain))
    assert torch.equal(fresh.model.denoise(X, T, {}), expected)
    model = shaken(own_model(plain))
    assert not torch.allclose(model.model.denoise(X, T, {}), expected, atol=1e-3)
    assert torch.equal(model.predict_before(X, T, {}), expected)
    assert torch.equal(plain.denoise(X, T, {}), expected)  # what was lent is what it was


def test_the_random_start_follows_its_own_seed_and_leaves_the_global_one_alone():
    models = [own_model(UNetModel(pixel_pipeline())) for _ in range(3)]
    state = torch.get_rng_state()
    starts = [adapted(model, seed).kept for model, seed in zip(models, (0, 0, 1))]
    assert torch.equal(torch.get_rng_state(), state)
    name = next(name for name in starts[0] if "lora_A" in name)
    assert torch.equal(starts[0][name], starts[1][name])
    assert not torch.equal(starts[0][name], starts[2][name])


def test_the_base_is_known_again_in_half_precision_and_no_other_is():
    unet = pixel_pipeline().unet
    identity = {"name": "mine", **base_identity(unet)}
    check_base(identity, unet, "mine", "adapted")
    check_base(identity, torch.nn.Module.to(pixel_pipeline().unet, torch.bfloat16), "mine", "a")
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.mul_(1.05)
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(ModelError, match="adapted from 'mine'.*found 'other'.*another mod"):
            check_base(identity, torch.nn.Module.to(unet, dtype), "other", "adapted")


def classes(names, class_map=None, null=3, prior=("left", "up", "down")):
    """A model with these classes, its rows, and those that it had."""
    model = own_model(UNetModel(pixel_pipeline(num_classes=4), "prior", prior, null))
    old = model.unet.class_embedding.weight.detach().clone()
    return model, ClassRows(model, names, class_map or {}), old


def test_known_classes_begin_as_copies_and_others_at_the_null_class():
    model, rows, old = classes(["Up", "right", "far_left"], {"far_left": "left"})
    assert torch.equal(rows.embedding(), old[[1, 3, 0, 3]])
    assert rows.started_from == {"Up": "class 'up'", "right": "the null class",
                                 "far_left": "class 'left'"}
    assert model.class_names == ["Up", "right", "far_left"] and model.guidable
    assert model.embed([2, None])["class_labels"].tolist() == [2, 3]


def test_a_map_may_name_rows_and_without_null_class_the_mean_is_the_start():
    model, rows, old = classes(["a", "b"], {"a": 2}, null=None, prior=None)
    torch.testing.assert_close(rows.embedding(), torch.stack([old[2], old.mean(0)]))
    assert not model.guidable and model.conditioning.null_class is None
    _, rows, old = classes(["a"], {"a": "1"}, prior=None)
    assert torch.equal(rows.embedding()[0], old[1])


def test_without_labels_the_null_class_alone_is_trained():
    model, rows, old = classes([])
    rows(model.embed([None, None])["class_labels"]).sum().backward()
    moved = rows.delta.grad.abs().sum(1)
    assert moved[3] > 0 and moved[:3].sum() == 0
    assert torch.equal(rows.embedding(), old)
    assert model.class_names == ["left", "up", "down"]


@pytest.mark.parametrize("names, class_map, null, error, message", [
    (["a"], {"b": "up"}, 3, ValueError, r"class_map names 'b', which is not one of .*\['a'\]"),
    (["a"], {"a": "sideways"}, 3, ValueError, "class_map must name classes of prior .*'sideways'"),
    (["a"], {"a": 9}, 3, ValueError, "rows 0 to 3, got 9 for 'a'"),
    ([], {}, None, ModelError, "without a null class, so images without labels"),
])
def test_bad_classes_are_refused(names, class_map, null, error, message):
    with pytest.raises(error, match=message):
        classes(names, class_map, null=null)


def test_models_with_lora_weights_are_refused():
    model = UNetModel(pixel_pipeline(), "tiny")
    shaken(model)
    with pytest.raises(ModelError, match="tiny has LoRA weights already"):
        own_model(model)
