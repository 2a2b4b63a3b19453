"""Bad values at every public door: an error that names the argument, before any model is loaded."""

import inspect
import math
import typing
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from dreamda_aug import (
    AMSTWrapper,
    AugmentedDataset,
    BottleneckNoise,
    DDIMInversion,
    DreamDAugment,
    LatentCache,
    ModelSpec,
    SelfTraining,
    Settings,
    Synthesizer,
    adapt,
    calibrate,
    evaluate,
    expand,
    train,
)
from dreamda_aug.adaptation import AdaptationSettings
from dreamda_aug.amst import (
    CLIPClassifier,
    PerImage,
    RunPlan,
    SingleHeadLabeler,
    StrongView,
    VotingRule,
    WeakView,
)
from dreamda_aug.arguments import check
from dreamda_aug.expansion import Expansion, LabelAgreement, estimate, open_filter, regenerate
from dreamda_aug.expansion.engines import RayEngine
from dreamda_aug.expansion.filters import OtherImageCopy, SeedCopy
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.metrics import classifier_features, compare_folders
from dreamda_aug.report import write_report
from dreamda_aug.report.explorer import explore
from dreamda_aug.report.pictures import preview
from dreamda_aug.report.publishing import push

DATA, NET = [(torch.zeros(1, 28, 28), 0)], nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
MAKER, WRAPPER = Synthesizer(cache=None), AMSTWrapper(NET)
EXPANSION = Expansion("bundled", MAKER)
SYNTHESIZER, AUGMENT = partial(Synthesizer, cache=None), partial(DreamDAugment, cache=None)
DATASET, CACHE = partial(AugmentedDataset, DATA, MAKER), partial(LatentCache, "nowhere")
ADAPT, TRAIN = partial(adapt, "nowhere"), partial(train, "nowhere")
EXPAND, EVALUATE = partial(expand, "bundled", "out"), partial(evaluate, "nowhere", MAKER)
CALIBRATE = partial(calibrate, torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), synthesizer=MAKER)
DOORS = [
    Settings, DDIMInversion, BottleneckNoise, AdaptationSettings, ModelSpec, SYNTHESIZER, AUGMENT,
    CACHE, partial(MAKER.synthesize, [DATA[0][0]]), DATASET, EXPAND,
    partial(AugmentedDataset.from_folder, DATA, "nowhere"), partial(Expansion, "bundled"),
    AugmentedDataset(DATA, MAKER, calibrate=False).wait, partial(EXPANSION.run, "out"),
    partial(estimate, EXPANSION), partial(regenerate, "nowhere", "x"), open_filter, RayEngine,
    SeedCopy, OtherImageCopy, partial(LabelAgreement, NET), partial(open_seed_images, "bundled"),
    EVALUATE, ADAPT, TRAIN, CALIBRATE, partial(preview, "nowhere", MAKER),
    partial(explore, "nowhere", MAKER), partial(write_report, "nowhere"),
    partial(push, "nowhere", "x"), partial(compare_folders, "a", "b"),
    partial(classifier_features, NET), RunPlan, VotingRule, WeakView, StrongView,
    partial(SingleHeadLabeler, NET), partial(PerImage, v2.RandomHorizontalFlip()),
    partial(CLIPClassifier, ["a", "b"], "nowhere"), partial(AMSTWrapper, NET),
    partial(SelfTraining, WRAPPER, DATA, DATA, torch.optim.SGD(NET.parameters(), 0.1)),
]
WRONG = [object(), math.nan, 10**400, True, 3, 1.5, b"x", "x", ["x"], [3]]
# Values of the right type.
OUTSIDE = [
    *((door, name, -1) for door, names in (
        (Settings, "steps paths strength eta replay noise_scale guidance_scale"),
        (AdaptationSettings, "rank train_steps learning_rate batch_size accumulate prior_weight "
                             "label_dropout held_out evaluate_every patience rng_seed"),
        (SYNTHESIZER, "batch_size"), (AUGMENT, "p steps batch_size"),
        (DATASET, "expansion_ratio prefetch_epochs replace"), (CACHE, "max_bytes"),
        (CALIBRATE, "min_agreement max_rows expansion_ratio"), (WeakView, "padding"),
        (EXPAND, "expansion_ratio shard_samples threads limit"),
        (EVALUATE, "draws image_size rng_seed train_steps train_batch_size flip"),
        (TRAIN, "image_size train_steps batch_size rng_seed minutes flip"),
        (RunPlan, "epochs"), (VotingRule, "confidence_threshold"),
        (partial(SingleHeadLabeler, NET), "confidence_threshold"),
        (partial(AMSTWrapper, NET), "consistency_threshold"),
        (SeedCopy, "threshold"), (OtherImageCopy, "threshold size"), (RayEngine, "workers"),
        (partial(PerImage, NET), "group"), (StrongView, "operations magnitude cutout"),
    ) for name in names.split()),
    (ModelSpec, "device", "x"), (ModelSpec, "dtype", "x"), (ModelSpec, "model", "  "),
    (RunPlan, "ratio", (0, 1, 1)),
    (SYNTHESIZER, "block_index", 1.5), (SYNTHESIZER, "preset", "x"), (AUGMENT, "strength", "0.5"),
]


@pytest.fixture(autouse=True)
def _no_model(monkeypatch):
    monkeypatch.setattr("dreamda_aug.models.ModelSpec.load",
                        lambda spec: pytest.fail("a bad value got as far as the model"))


def named(each):
    return getattr(getattr(each, "func", each), "__qualname__", str(each))


def refuses(door, name, value):
    with pytest.raises((ValueError, TypeError), match=rf"\b{name} must "):
        door(**{"source" if name == "model" and door is ModelSpec else name: value})


@pytest.mark.parametrize("door", DOORS, ids=named)
def test_a_value_of_another_type_is_refused_by_name(door):
    function, tried = getattr(door, "func", door), 0
    hints = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)
    for name in hints.keys() & inspect.signature(door).parameters:
        for value in WRONG:
            try:
                check(name, value, hints[name])
            except ValueError:
                tried += 1
                refuses(door, name, value)
    assert tried


@pytest.mark.parametrize("door, name, value", OUTSIDE, ids=named)
def test_a_value_outside_its_range_is_refused_by_name(door, name, value):
    refuses(door, name, value)


def test_a_licence_that_no_file_can_hold_is_refused():
    with pytest.raises(ValueError, match="is not UTF-8"):
        EXPAND(license="\ud800")
