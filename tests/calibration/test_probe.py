"""Classifiers made from a diffusion model: a probe on its features, and the model itself."""

from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import torch
from pipelines import pixel_pipeline
from sklearn.linear_model import LogisticRegression

from dreamda_aug import load_model
from dreamda_aug.amst import SingleHeadLabeler
from dreamda_aug.calibration.probe import (
    DiffusionClassifier,
    LinearProbe,
    logistic_regression,
    model_features,
)
from dreamda_aug.generation.sampler import in_turn
from dreamda_aug.metrics.features import pixel_features
from dreamda_aug.models.unet import UNetModel


@pytest.fixture(scope="module")
def model():
    return UNetModel(pixel_pipeline())


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
    seen, inputs = [], []
    hook = model.unet.up_blocks[0].register_forward_hook(lambda *args: seen.append(args[2]))
    catch = model.unet.register_forward_pre_hook(lambda _, args: inputs.append(args))
    found = model_features(model)(images(3))
    hook.remove(), catch.remove()
    for (x_t, t, *_), level in zip(inputs, (50, 200), strict=True):
        alpha_bar = model.pipeline.scheduler.alphas_cumprod[int(t)]
        noise = (x_t - alpha_bar.sqrt() * (images(3) * 2 - 1)) / (1 - alpha_bar).sqrt()
        assert abs(int(t) - level) < 20 and 0.8 < noise.std() < 1.2
        torch.testing.assert_close(noise[0], noise[2], atol=1e-4, rtol=0)  # for every image
    means = [maps.unfold(2, 8, 8).unfold(3, 8, 8).mean((4, 5)).flatten(1) for maps in seen]
    torch.testing.assert_close(found, torch.cat(means, 1))


def test_features_of_latent_and_of_compiled_models_are_those_of_the_plain_one(sd_pipeline, model):
    latent = UNetModel(sd_pipeline)
    assert model_features(latent)(torch.rand(2, 3, *latent.image_size)).isfinite().all()
    compiled = UNetModel(pixel_pipeline()).compiled(backend="eager")
    compiled.predict(torch.zeros(2, 1, 16, 16), torch.tensor(5), compiled.embed([None] * 2))
    torch.testing.assert_close(model_features(compiled)(images(2)), model_features(model)(
        images(2)))


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
    with pytest.raises(ValueError, match="two or more"):
        probe.matched_to(shots[:1])


@pytest.mark.parametrize("targets, options, message", [
    (torch.arange(3), {}, r"targets must be integers of shape \(4,\)"),
    (torch.arange(4), {"num_classes": 3}, r"targets must lie in \[0, 2\], got 0 to 3"),
    (torch.arange(4) % 2, {"inverse_penalty": 0}, r"inverse_penalty must be above 0, got 0")])
def test_arguments_of_a_probe_out_of_range_are_refused(targets, options, message):
    with pytest.raises(ValueError, match=message):
        LinearProbe(pixel_features(), images(4), targets, **options)


# Three classes of images: grey values; the model below denoises towards its class's value.
VALUES = torch.tensor([0.1, 0.5, 0.9])


class Oracle:
    """A model that predicts the noise as if the image were of the class it is asked for."""

    def __init__(self):
        self.real = load_model(pixel_pipeline(num_classes=4), null_class=3, device=None)
        self.rows, self.times = 0, self.real.schedule(32, 1.0).timesteps

    def __getattr__(self, name):
        return getattr(self.real, name)

    def predict(self, x_t, t, condition):
        self.rows += len(x_t)
        clean = (VALUES * 2 - 1)[condition["class_labels"]][:, None, None, None].expand_as(x_t)
        return self.real.schedule(32, 1.0).noise_of(clean, x_t, int((self.times == t).nonzero()))


def grey(labels):
    noise = 0.05 * torch.randn(len(labels), 1, 16, 16,
                               generator=torch.Generator().manual_seed(0))
    return (VALUES[labels][:, None, None, None] + noise).clamp(0, 1)


def test_the_diffusion_classifier_gives_the_class_under_which_an_image_is_denoised_best(
    monkeypatch
):
    monkeypatch.setattr("dreamda_aug.calibration.probe._CLASSES_KEPT", 2)
    labels, model = torch.tensor([0, 1, 2, 2, 0]), Oracle()
    classifier = DiffusionClassifier(model, [0, 1, 2], batch_size=4)
    together = classifier(grey(labels))
    assert torch.equal(together.argmax(1), labels)
    assert model.rows == 5 * (8 * 3 + 24 * 2)  # the worst class is given up
    alone = torch.cat([classifier(each[None]) for each in grey(labels)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
    assert classifier.fit_temperature(grey(labels), labels) < 1
    found = SingleHeadLabeler(classifier, confidence_threshold=0.5).label(grey(labels))
    assert torch.equal(found.labels, labels)  # confident by now
    with pytest.raises(ValueError, match="conditions must be two or more, got 1"):
        DiffusionClassifier(model, [0])


def test_a_thread_waits_while_another_one_uses_the_model(model):
    """The state of each call lies in the model's hook."""
    for use in (model_features(model), DiffusionClassifier(model, [None, None])):
        with ThreadPoolExecutor(1) as pool:
            with in_turn(model):
                found = pool.submit(use, images(2))
                assert wait([found], timeout=0.3).not_done
            assert len(found.result()) == 2
