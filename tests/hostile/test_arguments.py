"""Bad values at every public door: an error that names the argument, before any model is loaded."""

import math
from functools import partial

import pytest
import torch

from dreamda_aug import (
    AugmentedDataset,
    DreamDAugment,
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

BAD = {
    "number": ["0.5", math.nan, True], "count": ["8", -1, 1.5], "integer": ["8", 1.5, 2**64],
    "word": ["x", 3], "flag": ["yes", 1], "text": [3, ["x"]], "texts": ["cat", [3]],
    "path": [3, ["x"]], "function": ["x"], "pair": ["12", 3, ("a", 1)],
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
@pytest.fixture(autouse=True)
def _no_model(monkeypatch):
    monkeypatch.setattr("dreamda_aug.models.ModelSpec.load",
                        lambda spec: pytest.fail("a bad value got as far as the model"))


@pytest.mark.parametrize("door, kind, name", CASES, ids=lambda each: (
    each if isinstance(each, str) else getattr(each, "func", each).__name__))
def test_a_bad_value_is_refused_by_name(door, kind, name):
    for value in BAD[kind]:
        with pytest.raises((ValueError, TypeError), match=rf"\b{name} must "):
            door(**{name: value})


def test_a_model_without_a_name_is_refused():
    with pytest.raises(ValueError, match="model must be a hub id"):
        ModelSpec("  ")
