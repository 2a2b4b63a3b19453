from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from pipelines import pixel_pipeline
from sklearn.linear_model import LogisticRegression

from dreamda_aug.amst import SingleHeadLabeler
from dreamda_aug.calibration.diffusion_classifier import DiffusionClassifier
from dreamda_aug.calibration.probe import LinearProbe, logistic_regression, model_features
from dreamda_aug.generation.sampler import in_turn
from dreamda_aug.metrics.features import pixel_features
from dreamda_aug.models.unet import LatentModel, PixelModel


@pytest.fixture(scope="module")
def model():
    return PixelModel(pixel_pipeline())


def images(count: int, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("penalty", [0.1, 30.0])
def test_the_regression_is_scikit_learns(penalty):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    targets = (features[:, :3] + torch.randn(40, 3, generator=generator)).argmax(1)
    weight, bias = logistic_regression(features, targets, 3, penalty)
    fit = LogisticRegression(C=penalty, tol=1e-9, max_iter=1000).fit(features, targets)
    torch.testing.assert_close(
        (features @ weight.T + bias).softmax(1), torch.from_numpy(fit.predict_proba(features)),
        rtol=1e-4, atol=1e-5)


def test_features_are_what_the_first_up_block_gives_for_the_noised_image(model):
    found = model_features(model, strengths=(0.3,), grid=1)(images(3))
    seen, inputs = [], []
    hook = model.unet.up_blocks[0].register_forward_hook(lambda *args: seen.append(args[2]))
    catch = model.unet.register_forward_pre_hook(lambda _, args: inputs.append(args))
    model_features(model, strengths=(0.3,), grid=1)(images(3))
    hook.remove(), catch.remove()
    x_t, t = inputs[0][:2]
    alpha_bar = model.pipeline.scheduler.alphas_cumprod[int(t)]
    noise = (x_t - alpha_bar.sqrt() * (images(3) * 2 - 1)) / (1 - alpha_bar).sqrt()
    assert 280 < int(t) < 320
    torch.testing.assert_close(noise[0], noise[2], msg="the same noise for every image")
    assert 0.8 < noise.std() < 1.2
    torch.testing.assert_close(found, seen[0].mean((2, 3)))


def test_an_image_has_the_same_features_in_any_batch(model):
    features, batch = model_features(model), images(4)
    whole = features(batch)
    channels = model.unet.config.block_out_channels[-1]
    assert whole.shape == (4, 2 * channels * 4)
    torch.testing.assert_close(features(batch[2:3]), whole[2:3], rtol=1e-4, atol=1e-5)


def test_features_of_latent_and_of_compiled_models_are_those_of_the_plain_one(sd_pipeline, model):
    latent = LatentModel(sd_pipeline)
    assert model_features(latent)(torch.rand(2, 3, *latent.image_size)).isfinite().all()
    compiled = PixelModel(pixel_pipeline()).compiled(backend="eager")
    compiled.predict(torch.zeros(2, 1, 16, 16), torch.tensor(5), compiled.embed([None] * 2))
    torch.testing.assert_close(model_features(compiled)(images(2)), model_features(model)(
        images(2)))


def test_a_probe_is_matched_to_images_of_another_look():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % 3
    shots = 0.3 * torch.rand(60, 1, 6, 6, generator=generator)
    for label in range(3):
        shots[targets == label, :, 2 * label : 2 * label + 2] += 0.15
    other = 0.4 * shots + 0.6 - torch.linspace(0.5, 0, 6)[:, None]
    probe = LinearProbe(pixel_features(), shots, targets)
    before = probe(other)
    assert (before.argmax(1) == targets).float().mean() < 0.6
    assert (probe.matched_to(other)(other).argmax(1) == targets).float().mean() > 0.95
    assert torch.equal(probe(other), before)
    with pytest.raises(ValueError, match="two or more"):
        probe.matched_to(other[:1])


def test_a_probe_labels_images_as_any_classifier():
    shots, targets = images(20), torch.arange(20) % 2
    shots[targets == 1] /= 2
    probe = LinearProbe(pixel_features(), shots, targets, num_classes=4)
    assert (probe(shots).argmax(1) == targets).all()
    assert probe(shots).softmax(1)[:, 2:].max() < 0.25  # classes without an image
    labels = SingleHeadLabeler(probe, confidence_threshold=0.0).label(shots)
    assert labels.mask.all() and torch.equal(labels.labels, targets)
    restored = LinearProbe(pixel_features(), shots.flip(0), targets, num_classes=4)
    restored.load_state_dict(probe.state_dict())
    assert torch.equal(restored(shots), probe(shots))
    # not float64, which Apple's GPUs do not have
    assert {value.dtype for value in probe.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("targets, options, message", [
    (torch.arange(3), {}, r"targets must be integers of shape \(4,\)"),
    (torch.arange(4), {"num_classes": 3}, r"got 0 \.\.\. 3 with num_classes=3"),
    (torch.zeros(4, dtype=torch.int64), {}, "at least two classes"),
    (torch.arange(4) % 2, {"inverse_penalty": 0}, r"inverse_penalty must be above 0, got 0")])
def test_arguments_of_a_probe_out_of_range_are_refused(targets, options, message):
    with pytest.raises(ValueError, match=message):
        LinearProbe(pixel_features(), images(4), targets, **options)


@pytest.mark.parametrize("options, message", [
    ({"strengths": ()}, r"strengths must lie in \[0\.01, 1\].* got \(\)"),
    ({"strengths": (0.001,)}, r"got \(0\.001,\)"), ({"grid": 0}, "grid must be at least 1, got 0")])
def test_arguments_of_features_out_of_range_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model_features(model, **options)


def test_a_thread_waits_while_another_one_uses_the_model(model):
    """The state of each call lies in the model's hook."""
    for use in (model_features(model), DiffusionClassifier(model, [None, None], stages=[(1, 1)])):
        with ThreadPoolExecutor(1) as pool:
            with in_turn(model):
                found = pool.submit(use, images(2))
                assert wait([found], timeout=0.3).not_done
            assert len(found.result()) == 2
