"""Feature functions against torchvision and timm models, in memory and on disk."""

import pickle
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision import models
from torchvision.transforms.v2 import functional as v2

from dreamda_aug.errors import StorageError
from dreamda_aug.metrics.features import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    build_classifier,
    classifier_features,
    extract_features,
    inception_features,
    open_classifier_features,
    pixel_features,
)


def images(count=5, channels=3, size=8):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


class SmallNet(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.hidden = nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def trunk(self, x):
        return self.hidden(self.norm(self.conv(x)).mean((2, 3)))

    def forward(self, x):
        return self.head(self.trunk(x))


def test_pixel_features_are_the_flattened_images_resized_as_torchvision_does():
    x = images(size=20)
    assert torch.equal(pixel_features()(x), x.reshape(5, 1200))
    expected = v2.resize(x, [8, 8], antialias=True).flatten(1)
    torch.testing.assert_close(pixel_features(size=8)(x), expected)
    with pytest.raises(ValueError, match=r"size must be an integer >= 1, got 0"):
        pixel_features(size=0)


# --- classifiers


def test_feature_functions_go_to_other_processes_through_pickle():
    images = torch.rand(2, 1, 8, 8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 2))
    for features in (pixel_features(4), classifier_features(network)):
        assert torch.equal(pickle.loads(pickle.dumps(features))(images), features(images))


def test_grey_images_are_repeated_only_for_networks_that_want_colour_and_left_as_they_were():
    for channels in (3, 1):
        model, grey = SmallNet(channels).train(), images(channels=1)
        model.head.eval()
        mean = model.norm.running_mean.clone()
        found = classifier_features(model)(grey)
        assert model.training and model.norm.training and not model.head.training
        assert torch.equal(model.norm.running_mean, mean) and not model.head._forward_pre_hooks
        with torch.no_grad():
            expected = model.eval().trunk(grey.repeat(1, channels, 1, 1))
        torch.testing.assert_close(found, expected)


def test_bad_classifier_arguments_are_refused():
    with pytest.raises(ValueError, match="final classification layer of Flatten was not found"):
        classifier_features(nn.Flatten())
    with pytest.raises(ValueError, match=r"mean and std must be given together, got mean=\(0.5,\)"):
        classifier_features(SmallNet(), mean=(0.5,))


# --- on disk


def test_torchvisions_weights_give_the_input_of_their_final_layer(tmp_path):
    model = models.shufflenet_v2_x0_5(num_classes=7).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    features = open_classifier_features(f"shufflenet_v2_x0_5:{tmp_path}/w.safetensors")
    images = torch.rand(2, 3, 50, 50)
    seen = v2.normalize(v2.resize(images, [224, 224], antialias=True), IMAGENET_MEAN, IMAGENET_STD)
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(features(images), model(seen))


def test_timms_architectures_open_where_torchvision_has_none(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_resnet", pretrained=False, num_classes=4).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    found = build_classifier("test_resnet", tmp_path / "w.safetensors")
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(found(images), model(images))


@pytest.mark.parametrize("text, error, message", [
    ("judge.pt", ValueError, r"bundled or ARCHITECTURE:WEIGHTS.safetensors, got 'judge.pt'"),
    ("resnet18:none.safetensors", FileNotFoundError, "none.safetensors"),
    ("resnet99:FILE", ValueError, r"neither torchvision nor timm has a classifier 'resnet99'"),
    ("resnet18:FILE", ValueError, r"expected weights of resnet18: .*Missing key"),
])  # fmt: skip
def test_what_is_no_classifier_is_refused(tmp_path, text, error, message):
    file = tmp_path / "w.safetensors"
    save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(error, match=message):
        open_classifier_features(text.replace("FILE", str(file)))


# --- Inception


class RecordsItsInput(nn.Module):
    """Stands in for Inception: answers with each image's mean, least and greatest value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1:] != (3, 299, 299):
            raise ValueError("not what Inception takes")
        return torch.stack([x.mean((1, 2, 3)), x.amin((1, 2, 3)), x.amax((1, 2, 3))], 1)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "stand-in.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # writing such files is deprecated; reading is what counts
        torch.jit.script(RecordsItsInput()).save(str(path))
    return path


@pytest.mark.filterwarnings("error")
def test_inception_sees_what_it_was_trained_on(stand_in):
    features = inception_features(stand_in)
    levels = torch.tensor([0.0, 128 / 255, 1.0])[:, None, None, None].expand(3, 1, 40, 30)
    expected = torch.tensor([-1.0, 0.0, 127 / 128])[:, None].expand(3, 3)
    torch.testing.assert_close(features(levels), expected, atol=1e-5, rtol=0)
    x = (images(2, size=40) > 0.5).float()
    resized = v2.resize(x, [299, 299], v2.InterpolationMode.BICUBIC, antialias=True)
    assert resized.min() < -0.01  # the case overshoots
    expected = ((resized.clamp(0, 1) * 255 - 128) / 128).mean((1, 2, 3))
    torch.testing.assert_close(features(x)[:, 0], expected)


def test_a_missing_or_foreign_inception_file_is_refused(tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match="text.pt: expected a TorchScript file, found something"):
        inception_features(tmp_path / "text.pt")
    with pytest.raises(StorageError, match="expected a regular file, found a folder"):
        inception_features(tmp_path)


# --- extraction


def test_extraction_is_the_same_for_every_kind_of_source_and_batch_size():
    x = (images(7) * 255).round().to(torch.uint8)
    expected = x.flatten(1) / 255
    labeled = TensorDataset(x, torch.arange(7))
    sources = [x, labeled, DataLoader(labeled, batch_size=3),
               [v2.to_pil_image(image) for image in x], iter(x), [(image, 0) for image in x]]
    for source in sources:
        torch.testing.assert_close(extract_features(source, pixel_features()), expected)
    for batch_size in (1, 3, 7):
        found = extract_features(x, pixel_features(), batch_size=batch_size)
        torch.testing.assert_close(found, expected)


def test_extraction_is_lazy_and_calls_in_batches():
    read, called = [], []

    class Endless(Dataset):  # like many datasets, it never raises IndexError
        def __len__(self):
            return 5

        def __getitem__(self, index):
            read.append(index)
            return torch.full((1, 2, 2), index / 10), "label"

    def feature_fn(batch):
        called.append((len(batch), len(read)))
        return batch.flatten(1)

    found = extract_features(Endless(), feature_fn, batch_size=2)
    assert called == [(2, 2), (2, 4), (1, 5)]
    torch.testing.assert_close(found[:, 0], torch.arange(5) / 10)


def test_images_of_mixed_size_keep_their_order():
    values = [0.1, 0.2, 0.3, 0.4, 0.5]
    mixed = [torch.full((3, 4 + i % 3, 6), v) for i, v in enumerate(values)]
    found = extract_features(mixed, pixel_features(size=4), batch_size=5)
    torch.testing.assert_close(found[:, 0], torch.tensor(values))
    for batch_size in (1, 5):  # across batches and within one
        with pytest.raises(ValueError, match=r"equally many features .* got 72 and 90: .*size=32"):
            extract_features(mixed, pixel_features(), batch_size=batch_size)


def test_what_cannot_be_extracted_is_refused():
    flat = pixel_features()
    for given, options, message in (
            ((torch.rand(2, 3, 4, 4) * 9, flat), {}, r"a float image must lie in \[0, 1\]"),
            (([], flat), {}, "images must hold at least one image, got none"),
            ((images(), flat), {"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
            ((images(), abs), {}, r"feature_fn must return \(B, D\), got \(5, 3, 8, 8\)")):
        with pytest.raises(ValueError, match=message):
            extract_features(*given, **options)
