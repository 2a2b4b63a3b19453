"""Bad values at every public door: an error that names the argument, before any model is loaded."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from dreamda_aug import (
    AugmentedDataset,
    DreamDAugment,
    LatentCache,
    ModelSpec,
    Settings,
    Synthesizer,
    adapt,
    calibrate,
    evaluate,
    expand,
    train,
)
from dreamda_aug.adaptation import AdaptationSettings
from dreamda_aug.arguments import shown

COMMON = [b"1", {}, object(), math.nan, 1 + 2j, np.array([0.5, 0.5]), torch.tensor([1.0, 2.0])]
BAD = {
    "number": [*COMMON, "", "0.5", [], [1], math.inf, -math.inf, True, np.float32("nan"), 10**400],
    "count": [*COMMON, "", "8", [1], math.inf, -1, True, 1.5, 2.0, 2**64, 10**5000],
    "integer": [*COMMON, "", "8", [1], math.inf, True, 1.5, 2.0, 2**64, 10**5000],
    "word": [*COMMON, "", "x", 3, True, ["ddim"]],
    "flag": [*COMMON, "", "yes", 0, 1],
    "text": [*COMMON, 3, True, ["x"]],
    "texts": [*COMMON, "cat", 3, [3], [b"cat"]],
    "path": [*COMMON, 3, True, ["x"]],
    "function": [*COMMON, "x", 3],
    "pair": [*COMMON, "12", 3, (1,), (0.2, 0.5, 0.9), ("a", 1), (True, True)],
}
DATA = [(torch.zeros(1, 28, 28), 0)]
DOORS = {
    Settings: {"number": "strength eta replay noise_scale guidance_scale", "count": "steps paths",
               "word": "solver timestep_spacing update_rule inversion", "text": "source_prompt",
               "pair": "guidance_interval replay_interval", "function": "perturbation"},
    AdaptationSettings: {"number": "learning_rate prior_weight label_dropout held_out",
                         "count": "rank train_steps batch_size accumulate evaluate_every patience "
                                  "rng_seed",
                         "flag": "early_stopping gradient_checkpointing"},
    ModelSpec: {"number": "embedded_guidance", "integer": "block_index null_class",
                "flag": "low_memory", "path": "lora config", "text": "variant",
                "pair": "image_size", "word": "device dtype"},
    partial(Synthesizer, cache=None): {
        "count": "batch_size", "integer": "block_index", "flag": "keep_text_encoder low_memory",
        "texts": "class_names", "number": "embedded_guidance", "path": "lora",
        "word": "device preset", "text": "prompt"},
    partial(DreamDAugment, cache=None): {
        "number": "p strength", "function": "labels_getter", "count": "batch_size steps",
        "word": "preset", "text": "prompt"},
    partial(AugmentedDataset, DATA, Synthesizer(cache=None)): {
        "count": "expansion_ratio prefetch_epochs", "function": "transform",
        "flag": "with_origin calibrate", "number": "replace"},
    partial(AugmentedDataset, DATA): {"word": "synthesizer"},
    partial(expand, "nowhere", "out"): {
        "count": "shard_samples threads", "integer": "limit",
        "flag": "balance keep_flagged strict calibrate new",
        "texts": "only_classes", "word": "image_format synthesizer", "text": "license",
        "pair": "shard", "function": "progress"},
    partial(evaluate, "nowhere", Synthesizer(cache=None)): {
        "count": "draws image_size rng_seed train_steps train_batch_size",
        "integer": "shots", "number": "learning_rate flip", "path": "apply",
        "flag": "calibrate", "function": "classifier", "text": "device"},
    partial(adapt, "nowhere"): {"path": "out data_root", "texts": "class_names",
                                "text": "prompt", "flag": "download progress", "word": "settings"},
    partial(train, "nowhere"): {"count": "image_size train_steps batch_size rng_seed",
                                "number": "minutes flip", "flag": "grey download", "word": "width",
                                "path": "out data_root", "texts": "class_names"},
    partial(calibrate, torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]),
            synthesizer=Synthesizer(cache=None)): {
        "number": "min_agreement max_distance", "count": "max_rows",
        "function": "classifier progress", "pair": "strengths block_indices"},
}
CASES = [(door, kind, name) for door, kinds in DOORS.items() for kind, names in kinds.items()
         for name in names.split()]
# any number of numbers, and an interval that begins where it ends
ALLOWED = {("strengths", "(0.2, 0.5, 0.9)"), ("strengths", "(1,)"), ("block_indices", "(1,)"),
           *((name, text) for name in ("strengths", "guidance_interval", "replay_interval")
             for text in ("array([0.5, 0.5])", "tensor([1., 2.])"))}


@pytest.fixture(autouse=True)
def _no_model(monkeypatch):
    monkeypatch.setattr("dreamda_aug.models.ModelSpec.load",
                        lambda spec: pytest.fail("a bad value got as far as the model"))


@pytest.mark.parametrize("door, kind, name", CASES, ids=lambda each: (
    each if isinstance(each, str) else getattr(each, "func", each).__name__))
def test_a_bad_value_is_refused_by_name(door, kind, name):
    for value in BAD[kind]:
        if name == "prompt" and callable(value) or (name, shown(value)) in ALLOWED:
            continue
        with pytest.raises((ValueError, TypeError), match=rf"\b{name} must "):
            door(**{name: value})


@pytest.mark.parametrize("name", ["", "  "])
def test_a_model_without_a_name_is_refused(name):
    with pytest.raises(ValueError, match="model must be a hub id"):
        ModelSpec(name)


@pytest.mark.parametrize("value", [0, -1, "1 GB", 1.5, True])
def test_a_cache_refuses_a_budget_that_is_none(value, tmp_path):
    with pytest.raises(ValueError, match="max_bytes must be an integer"):
        LatentCache(tmp_path, max_bytes=value)
