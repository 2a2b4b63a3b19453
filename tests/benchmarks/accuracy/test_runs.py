"""Single runs: cached by everything that they depend on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.accuracy.arms import Arm
from benchmarks.accuracy.pools import PoolSpec, Stopped
from benchmarks.accuracy.runs import (
    Run,
    Setup,
    corpus_classifier,
    hard_third,
    images_of,
    pool_of,
    result,
    result_path,
)
from dreamda_aug import Settings
from dreamda_aug.evaluation.training import Trainer

REAL = Arm("real only", view="none")


def test_a_run_is_trained_once_and_again_only_when_something_changed(tmp_path, monkeypatch, tiny):
    setup = Setup(tiny, Path(), tmp_path)
    run = Run(Arm("duplicate-real", "copies", view="none"), PoolSpec("copies", 3), 2, 0)
    first = result(setup, run)
    assert set(first) >= {"arm", "shots", "rng_seed", "validation", "test", "commit", "machine"}
    monkeypatch.setattr(Trainer, "fit", None)  # would fail if it were called
    assert result(setup, run) == first
    others = [replace(run, rng_seed=1), replace(run, spec=PoolSpec("copies", 4)),
              replace(run, arm=replace(run.arm, weak=(0.0, 0.0)))]  # fmt: skip
    setups = [setup, setup, setup, replace(setup, task=replace(tiny, learning_rate=1e-2))]
    paths = [result_path(s, r) for s, r in zip(setups, [*others, run], strict=True)]
    assert len({*paths, result_path(setup, run)}) == 5


def test_a_run_beyond_the_deadline_is_not_begun(tmp_path, tiny):
    with pytest.raises(Stopped):
        result(Setup(tiny, Path(), tmp_path, deadline=0), Run(REAL, PoolSpec("none"), 2, 0))


def test_tuning_looks_at_validation_alone(tmp_path, tiny):
    run = Run(REAL, PoolSpec("none"), 2, 100, tuning=True)
    found = result(Setup(tiny, Path(), tmp_path), run)
    assert found["test"] is None and 0 <= found["validation"] <= 1


@pytest.fixture
def corpus(tmp_path):
    """Sixty images of 28×28 pixels in MNIST's files: of each class another grey."""
    folder, labels = tmp_path / "corpus", np.arange(60, dtype=np.uint8) % 3
    folder.mkdir()
    for part in ("train", "t10k"):
        for what, values in (("images-idx3", np.tile(labels[:, None, None] * 100, (1, 28, 28))),
                             ("labels-idx1", labels)):
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            (folder / f"{part}-{what}-ubyte").write_bytes(head + values.tobytes())
    return folder


def test_the_priors_own_images_are_a_pool_and_pretrain_a_classifier(
    tmp_path, tiny, corpus, monkeypatch
):
    setup = Setup(replace(tiny, corpus=corpus), Path(), tmp_path)
    arm = Arm("corpus", "corpus", view="none")
    pool = pool_of(setup, Run(arm, PoolSpec("corpus"), 2, 0))
    assert pool.pixels.shape == (60, 1, 16, 16)
    assert pool.pixels[:, 0, 8, 8].tolist() == [100 * label for label in pool.seed_labels]
    run = Run(replace(arm, name="pretrained", pretrained=True), PoolSpec("none"), 2, 0)
    started = []
    fit = Trainer.fit

    def spied(self, model, *given, **more):
        started.append({name: each.clone() for name, each in model.state_dict().items()})
        fit(self, model, *given, **more)

    monkeypatch.setattr(Trainer, "fit", spied)
    result(setup, run)
    of_corpus, of_arm = started
    kept = load_file(corpus_classifier(setup))
    assert all(torch.equal(of_arm[name], kept[name]) for name in kept)
    assert not all(torch.equal(of_corpus[name], kept[name]) for name in kept)


def test_an_adapted_prior_makes_other_images_and_is_adapted_once(setup_with_model, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.setattr("dreamda_aug.adaptation.adapting.DEFAULT_STEPS", 4)
    settings = Settings(steps=3, strength=0.5, replay=0.0, noise_scale=0.0)
    plain, adapted, free = (
        pool_of(setup_with_model, Run(Arm(kind, kind), PoolSpec(kind, 1, settings), 2, 0)).pixels
        for kind in ("replicas", "adapted", "adapted without labels"))
    assert not torch.equal(plain, adapted) and not torch.equal(adapted, free)
    folders = list((setup_with_model.state / "adaptations").iterdir())
    assert len(folders) == 2


def test_the_third_that_is_hardest_early_is_expanded_or_repeated(setup_with_model):
    setup = replace(setup_with_model, task=replace(setup_with_model.task, steps=32))
    settings = Settings(steps=3, strength=0.5, replay=0.0, noise_scale=0.0)
    expanded, repeated = (
        pool_of(setup, Run(Arm(kind, kind), PoolSpec(kind, 2, made), 6, 0))
        for kind, made in (("hard", settings), ("hard copies", None)))
    hard = hard_third(setup, 6, 0, (0.5, 0.125))
    shots = images_of(setup, Run(REAL, PoolSpec("none"), 6, 0)).shots
    assert len(hard) == len(shots) // 3 == 6
    assert len(expanded.pixels) == len(repeated.pixels) == 2 * len(shots)
    assert torch.equal(repeated.pixels[::6], hard.pixels)
    assert torch.equal(expanded.seed_labels, repeated.seed_labels)
    assert not torch.equal(expanded.pixels, repeated.pixels)
