"""Where the final layer of a classifier is, and what enters it."""

import pytest
import torch
from torch import nn

from dreamda_aug.final_layer import FeatureReader, evaluation_mode, find_head, main_logits


class Own(nn.Module):
    """A classifier whose layers have names of their own, the last one registered first."""

    def __init__(self, hidden, classes=5):
        super().__init__()
        self.classify = nn.Linear(hidden, classes)
        self.trunk = nn.Conv2d(3, 6, 3)
        self.inner = nn.Linear(6, hidden)

    def forward(self, images):
        return self.classify(self.inner(self.trunk(images).mean((2, 3))).relu())


def test_the_last_linear_layer_is_taken_unless_it_is_ambiguous():
    assert find_head(nn.Sequential(nn.Flatten(), nn.Linear(4, 7), nn.Linear(7, 5)))[0] == "2"
    with pytest.raises(ValueError, match=r'was not found: name it, head="…".*"classify" \(Linear 5'
                                         " -> 5"):
        find_head(Own(5))  # two layers with as many outputs
    model = Own(5)
    for head in ("classify", model.classify):
        assert find_head(model, head) == ("classify", model.classify)


def test_a_distilled_model_of_transformers_has_two_final_layers_and_is_refused():
    transformers = pytest.importorskip("transformers", reason="transformers is an extra")
    config = transformers.DeiTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=8, num_labels=5)
    with pytest.raises(ValueError, match='"cls_classifier".*"distillation_classifier"'):
        find_head(transformers.DeiTForImageClassificationWithTeacher(config))


@pytest.mark.parametrize("head", ["nowhere", "trunk", nn.Linear(24, 5)])
def test_a_head_that_is_no_final_layer_of_the_model_is_refused(head):
    with pytest.raises(ValueError, match="head must be a Linear or 1×1 Conv2d layer of the model"):
        find_head(Own(7), head)
    with pytest.raises(ValueError, match="no Linear and no 1×1 Conv2d layer; let it end in one"):
        find_head(nn.Flatten())


def test_features_are_the_layers_input_averaged_over_positions():
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(16, 3))
    maps = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Conv2d(7, 2, 1))
    images = torch.rand(4, 3, 4, 4)
    found, output = FeatureReader(tokens).read(tokens, images)
    torch.testing.assert_close(found, images.flatten(2).mean(1))
    torch.testing.assert_close(output, tokens(images))
    found, _ = FeatureReader(maps, "1").read(maps, images)
    torch.testing.assert_close(found, maps[0](images).mean((2, 3)))


def test_a_layer_that_does_not_run_is_named():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.unused = nn.Flatten(), nn.Linear(24, 5)

        def forward(self, images):
            return self.trunk(images)

    with pytest.raises(RuntimeError, match='the layer "unused" did not run'):
        FeatureReader(model := Unused()).read(model, torch.rand(2, 3, 4, 4))


def test_logits_are_found_in_what_libraries_return():
    logits = torch.rand(2, 3)
    for output in (logits, {"logits": logits}, (logits, None)):
        assert main_logits(output) is logits
    for output in (torch.rand(2), "logits", ()):
        with pytest.raises(TypeError, match=r"logits of shape \(N, C\), or a tuple or named"):
            main_logits(output)
    with pytest.raises(ValueError, match=r"at least two, got 1. .*nn.Linear\(features, 2\)"):
        main_logits(logits[:, :1])


def test_evaluation_mode_gives_every_module_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[1].eval()
    with evaluation_mode(model):
        assert not model[0].training
    assert model.training and model[0].training and not model[1].training
