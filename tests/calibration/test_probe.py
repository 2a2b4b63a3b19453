import pytest
import torch
from pipelines import pixel_pipeline
from sklearn.linear_model import LogisticRegression

from dreamda_aug.amst import SingleHeadLabeler
from dreamda_aug.calibration.probe import (
    LinearProbe,
    cross_validate,
    logistic_regression,
    model_features,
)
from dreamda_aug.metrics.features import pixel_features
from dreamda_aug.models.latent import LatentModel
from dreamda_aug.models.unet import PixelModel


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
    torch.testing.assert_close((features @ weight.T + bias).softmax(1),
                               torch.from_numpy(fit.predict_proba(features)),
                               rtol=1e-4, atol=1e-5)  # fmt: skip


def test_features_are_what_the_first_up_block_gives_for_the_noised_image(model):
    found = model_features(model, strengths=(0.3,), grid=1)(images(3))
    seen = []
    hook = model.unet.up_blocks[0].register_forward_hook(lambda *args: seen.append(args[2]))
    inputs = []
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


def test_features_of_latent_models_are_asked_without_a_prompt(sd_pipeline):
    model = LatentModel(sd_pipeline)
    colour = torch.rand(2, 3, *model.image_size)
    assert model_features(model)(colour).isfinite().all()


def test_the_bundled_models_features_tell_classes_apart(bundled):
    from dreamda_aug.bundled import FashionMNISTSample

    few, many = FashionMNISTSample("train"), FashionMNISTSample("test")
    rows = torch.cat([(torch.tensor(few.targets) == c).nonzero()[:5, 0] for c in range(10)])
    shots, targets = few.data[rows, None] / 255, torch.tensor(few.targets)[rows]
    held, truth = many.data[:, None] / 255, torch.tensor(many.targets)
    probe = LinearProbe(model_features(bundled), shots, targets)
    # pixels give 0.70: such a small model adds little to them
    assert (probe(held).argmax(1) == truth).float().mean() > 0.68


def test_a_backbone_that_was_compiled_before_gives_the_same_features():
    compiled = PixelModel(pixel_pipeline()).compiled(backend="eager")
    compiled.predict(torch.zeros(2, 1, 16, 16), torch.tensor(5), compiled.embed([None] * 2))
    torch.testing.assert_close(model_features(compiled)(images(2)),
                               model_features(PixelModel(pixel_pipeline()))(images(2)))


def test_a_probe_is_matched_to_images_of_another_look():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % 3
    shots = 0.3 * torch.rand(60, 1, 6, 6, generator=generator)
    for label in range(3):
        shots[targets == label, :, 2 * label : 2 * label + 2] += 0.15
    other = 0.4 * shots + 0.6 - torch.linspace(0.5, 0, 6)[:, None]
    probe = LinearProbe(pixel_features(), shots, targets)
    before = probe(other)
    matched = probe.matched_to(other)
    assert (before.argmax(1) == targets).float().mean() < 0.6
    assert (matched(other).argmax(1) == targets).float().mean() > 0.95
    assert torch.equal(probe(other), before)
    # matched to its own images it is what it was
    torch.testing.assert_close(probe.matched_to(shots)(shots), probe(shots))
    with pytest.raises(ValueError, match="two or more"):
        probe.matched_to(other[:1])


def test_a_probe_labels_images_as_any_classifier():
    shots, targets = images(20), torch.arange(20) % 2
    shots[targets == 1] /= 2
    probe = LinearProbe(pixel_features(), shots, targets)
    assert (probe(shots).argmax(1) == targets).all()
    labels = SingleHeadLabeler(probe, confidence_threshold=0.0).label(shots)
    assert labels.mask.all() and torch.equal(labels.labels, targets)
    restored = LinearProbe(pixel_features(), shots.flip(0), targets)
    restored.load_state_dict(probe.state_dict())
    assert torch.equal(restored(shots), probe(shots))


def test_classes_without_an_image_are_improbable():
    shots, targets = images(12), torch.arange(12) % 2
    probe = LinearProbe(pixel_features(), shots, targets, num_classes=4)
    assert probe(shots).shape == (12, 4) and probe(shots).softmax(1)[:, 2:].max() < 0.25


def test_a_feature_that_never_changes_does_no_harm():
    shots = images(6)
    shots[:, :, 0] = 0.5
    assert LinearProbe(pixel_features(), shots, torch.arange(6) % 3)(shots).isfinite().all()


def test_arguments_out_of_range_are_refused(model):
    shots = images(4)
    with pytest.raises(ValueError, match=r"targets must be integers of shape \(4,\), got .*\(3,\)"):
        LinearProbe(pixel_features(), shots, torch.arange(3))
    with pytest.raises(ValueError, match=r"got 0 \.\.\. 3 with num_classes=3"):
        LinearProbe(pixel_features(), shots, torch.arange(4), num_classes=3)
    with pytest.raises(ValueError, match="at least two classes"):
        LinearProbe(pixel_features(), shots, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"inverse_penalty must be above 0, got 0"):
        LinearProbe(pixel_features(), shots, torch.arange(4) % 2, inverse_penalty=0)
    with pytest.raises(ValueError, match=r"strengths must lie in \[0\.01, 1\].* got \(\)"):
        model_features(model, strengths=())
    with pytest.raises(ValueError, match=r"got \(0\.001,\)"):
        model_features(model, strengths=(0.001,))
    with pytest.raises(ValueError, match="grid must be at least 1, got 0"):
        model_features(model, grid=0)


def test_the_penalty_is_the_one_that_scikit_learn_finds_on_the_same_folds():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    targets = (features[:, :3] + 2 * torch.randn(60, 3, generator=generator)).argmax(1)
    choices = (0.01, 0.1, 1.0, 100.0)
    found, temperature = cross_validate(features, targets, 3, 3, choices)
    fold = torch.zeros_like(targets)
    for label in range(3):
        rows = (targets == label).nonzero().flatten()
        fold[rows] = torch.arange(len(rows)) % 3
    losses = {}
    for penalty in choices:
        logits = torch.zeros(60, 3, dtype=torch.float64)
        for number in range(3):
            fit = LogisticRegression(C=penalty, tol=1e-9, max_iter=1000).fit(
                features[fold != number], targets[fold != number])
            logits[fold == number] = torch.from_numpy(
                fit.decision_function(features[fold == number]))
        losses[penalty] = min(torch.nn.functional.cross_entropy(logits / t, targets).item()
                              for t in torch.logspace(-1, 1, 21).tolist())
    assert found == min(losses, key=losses.get)
    assert 0.1 <= temperature <= 10


def test_a_probe_that_chooses_its_penalty_says_which_and_divides_by_its_temperature():
    targets = torch.arange(12) % 3
    shown = images(12) * 0.3 + targets[:, None, None, None] * 0.2
    probe = LinearProbe(pixel_features(size=4), shown.expand(-1, 3, -1, -1), targets,
                        inverse_penalty=None)
    assert probe.inverse_penalty in (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    logits = probe(shown.expand(-1, 3, -1, -1))
    temperature, probe.temperature = probe.temperature, 1.0
    torch.testing.assert_close(
        logits * temperature, probe(shown.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5)


def test_one_image_of_a_class_is_too_few_to_cross_validate_on():
    with pytest.raises(ValueError, match="inverse_penalty must be given where a class has one"):
        LinearProbe(pixel_features(size=4), images(3).expand(-1, 3, -1, -1),
                    torch.tensor([0, 0, 1]), inverse_penalty=None)
