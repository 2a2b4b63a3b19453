"""`Synthesizer`: images of any kind in, images of that kind out, with one model."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from pictures import kind_of, picture
from pipelines import pixel_pipeline

from dreamda_aug import DreamDAugment, ModelSpec, Synthesizer, load_model
from dreamda_aug.errors import GenerationError
from dreamda_aug.generation.synthesizer import as_synthesizer

FAST = dict(preset="paper", steps=3, noise_scale=8.0, cache=None)


@pytest.fixture
def synthesizer(colour):
    return Synthesizer(colour, **FAST)


def test_every_image_comes_back_in_its_own_kind_whatever_its_batch_mates(synthesizer):
    images = [picture("L"), torch.rand(3, 16, 16), picture("I;16", (16, 8)),
              (torch.rand(1, 9, 7) * 255).to(torch.uint8), picture("RGB")]
    made = synthesizer.synthesize(images)
    assert list(map(kind_of, made)) == list(map(kind_of, images))
    for image, new in zip(images, made, strict=True):
        assert (np.asarray(new) != np.asarray(image)).any()


def test_replicas_and_epochs_differ_and_repeat(synthesizer):
    image = picture("RGB")
    made = synthesizer.synthesize([image] * 3, replicas=[0, 1, 0])
    later, = synthesizer.synthesize([image], epoch=1)
    assert made[0].tobytes() == made[2].tobytes()
    assert len({made[0].tobytes(), made[1].tobytes(), later.tobytes()}) == 3
    other, = Synthesizer(synthesizer.model, rng_seed=1, **FAST).synthesize([image])
    assert other.tobytes() != made[0].tobytes()


def test_an_image_that_is_asked_for_several_times_is_read_and_inverted_once(
    synthesizer, monkeypatch
):
    from dreamda_aug.generation import synthesizer as module

    read, real = [], module.read_pixels
    monkeypatch.setattr(module, "read_pixels", lambda image: read.append(image) or real(image))
    image, other = picture("RGB"), picture("RGB", rng_seed=1)
    synthesizer.synthesize([image, other, image], replicas=[0, 0, 1])
    assert read == [image, other] and synthesizer.sampler.inversions == 2


def test_a_batch_is_taken_as_the_images_that_it_holds(synthesizer):
    """Each look at a batch makes new tensors, which may get the ids of old ones."""
    batch = torch.rand(4, 3, 16, 16)
    together = synthesizer.synthesize(batch, replicas=torch.arange(4))
    for i, image in enumerate(batch):
        alone, = synthesizer.synthesize([image], replicas=[i])
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=0)
    assert synthesizer.synthesize([]) == []
    with pytest.raises(ValueError, match=r"must be single ones, \(C, H, W\), got a batch of 4"):
        synthesizer.synthesize([batch])


def test_no_model_is_loaded_before_the_first_image():
    synthesizer = Synthesizer("nobody/never-loaded", cache=None)
    assert synthesizer.requested_settings.noise_scale is None
    assert repr(synthesizer).startswith("Synthesizer('nobody/never-loaded', steps=10")
    assert pickle.loads(pickle.dumps(synthesizer)).batch_size == 32


def test_copies_share_the_model_and_pickles_load_it_anew(tmp_path, monkeypatch):
    pixel_pipeline(channels=3).save_pretrained(tmp_path)
    loaded, load = [], ModelSpec.load
    monkeypatch.setattr(ModelSpec, "load", lambda spec: loaded.append(spec) or load(spec))
    synthesizer, image = Synthesizer(str(tmp_path), **FAST), picture("RGB")
    copies = [copy.deepcopy(synthesizer), synthesizer.with_class_names(["a"]),
              synthesizer.with_settings(synthesizer.requested_settings)]
    expected, = synthesizer.synthesize([image])
    for each in copies:
        assert each.synthesize([image])[0].tobytes() == expected.tobytes()
        assert each.model is synthesizer.model
    assert len(loaded) == 1
    clone = pickle.loads(pickle.dumps(synthesizer))
    assert clone.synthesize([image])[0].tobytes() == expected.tobytes() and len(loaded) == 2
    lent = pickle.loads(pickle.dumps(Synthesizer(synthesizer.model, **FAST)))
    assert lent.synthesize([image])[0].tobytes() == expected.tobytes() and len(loaded) == 2


def test_a_copy_whose_prompts_were_not_embedded_gets_text_encoders(sd_pipeline, tmp_path):
    sd_pipeline.save_pretrained(tmp_path / "model")
    named = Synthesizer(tmp_path / "model", device="cpu", **FAST)
    first, second = named.with_class_names(["cat"]), named.with_class_names(["dog"])
    image = torch.rand(3, 16, 16)
    made = [each.synthesize([image], [0])[0] for each in (first, second)]
    assert first.model.pipeline.text_encoder is None and first.model is not second.model
    assert first.with_settings(first.requested_settings).model is not first.model
    kept = Synthesizer(tmp_path / "model", device="cpu", keep_text_encoder=True, **FAST)
    for each, name in zip(made, ("cat", "dog"), strict=True):
        again = kept.with_class_names([name])
        assert again.model is kept.model and again.model.pipeline.text_encoder is not None
        assert torch.equal(again.synthesize([image], [0])[0], each)


@pytest.mark.parametrize("loading", [{"device": "cpu"}, {"embedded_guidance": 0.0}])
def test_arguments_of_loading_are_refused_for_a_loaded_model(colour, loading):
    for model in (colour, ModelSpec()):
        with pytest.raises(ValueError, match="loaded or specified already.*; give them to Model"):
            Synthesizer(model, **loading)


def test_cuda_in_a_forked_worker_is_refused_with_the_way_out(monkeypatch):
    module = "dreamda_aug.generation.synthesizer"
    monkeypatch.setattr(f"{module}.get_worker_info", lambda: object())
    monkeypatch.setattr("torch.multiprocessing.get_start_method", lambda: "fork")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for loading in ({"device": "cuda"}, {}):
        with pytest.raises(GenerationError, match="multiprocessing_context='spawn'"):
            Synthesizer(**loading).synthesize([picture("L")])
    # a pipeline object runs where it is, whatever else is there
    pipeline = pixel_pipeline(channels=3)
    assert Synthesizer(pipeline, **FAST).synthesize([picture("RGB")])[0].mode == "RGB"
    assert Synthesizer(load_model(pipeline), **FAST).sampler is not None


def test_a_transform_hands_over_its_synthesizer_and_others_are_refused(synthesizer):
    assert as_synthesizer(synthesizer) is synthesizer
    assert as_synthesizer(DreamDAugment(synthesizer)) is synthesizer
    with pytest.raises(TypeError, match="a Synthesizer or a DreamDAugment was expected, got str"):
        as_synthesizer("bundled")


def test_samples_of_a_model_without_classes_are_warned_of():
    with pytest.warns(UserWarning, match="has no classes.*samples will be of any class"):
        assert Synthesizer(pixel_pipeline(), "samples", cache=None).sampler
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Synthesizer(pixel_pipeline(num_classes=3), "samples", cache=None).sampler
        assert Synthesizer(pixel_pipeline(), "samples", cache=None, strength=0.9).sampler
