import pytest
import torch
from expansion.folders import write_images
from pipelines import pixel_pipeline
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder
from torchvision.transforms import v2

from dreamda_aug import AugmentedDataset, DreamDAugment, Synthesizer
from dreamda_aug.models.unet import UNetModel

TO_FLOAT = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
K = 3


@pytest.fixture(scope="module")
def model():
    return UNetModel(pixel_pipeline())


@pytest.fixture
def augment(model, tmp_path):
    return DreamDAugment(model, "paper", steps=3, noise_scale=8.0, cache=tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    root = write_images(tmp_path / "images", {"cat": 2, "dog": 2})
    return ImageFolder(root, transform=v2.Compose([v2.Grayscale(1), TO_FLOAT]))


@pytest.fixture
def both(folder, augment):
    return AugmentedDataset(folder, augment, K, with_origin=True)


pytestmark = pytest.mark.filterwarnings("ignore:.*colours of the seed images are lost")


def test_real_samples_come_first_then_the_replicas_of_each_image(both, folder):
    assert len(both) == 4 * (K + 1) and len(both.real) == 4 and len(both.synthetic) == 4 * K
    for i in range(4):
        image, label, origin = both[i]
        assert torch.equal(image, folder[i][0]) and label == folder[i][1]
        assert origin == (False, i, -1, -1)
    image, label, origin = both[4 + 2 * K + 1]
    assert origin == (True, 2, 1, 0) and label == folder[2][1]
    assert image.shape == folder[2][0].shape and not torch.equal(image, folder[2][0])
    assert both.classes == ["cat", "dog"] and both.class_to_idx == {"cat": 0, "dog": 1}
    assert both.targets == [both[i][1] for i in range(len(both))]


def test_a_sample_is_the_same_alone_in_a_batch_and_in_workers(augment):
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    made = AugmentedDataset(TensorDataset(images, torch.tensor([0, 0, 1, 1])), augment, K).synthetic
    alone = torch.stack([made[i][0] for i in range(len(made))])
    for batch, workers in ((len(made), 0), (5, 2)):
        other = torch.cat([b[0] for b in DataLoader(made, batch, num_workers=workers)])
        torch.testing.assert_close(alone, other, atol=1e-5, rtol=0)


def test_a_new_epoch_gives_fresh_images_and_makes_no_inversion(both):
    first = both[5][0]
    inversions = both.synthesizer.sampler.inversions
    both.synthetic.set_epoch(1)  # a part passes it on
    second = both[5]
    assert second[2].epoch == both.epoch == both.real.epoch == 1
    assert not torch.equal(first, second[0])
    assert both.synthesizer.sampler.inversions == inversions == 1
    both.set_epoch(0)
    assert torch.equal(both[5][0], first)


def test_batches_reach_the_unet_as_batches(both, model):
    calls = []
    hook = model.unet.conv_in.register_forward_hook(lambda m, i, o: calls.append(len(o)))
    next(iter(DataLoader(both.synthetic, 12)))
    hook.remove()
    assert max(calls) == 12


def test_subsets_and_concatenations_can_be_wrapped(folder, augment):
    small = v2.Compose([v2.Grayscale(1), TO_FLOAT, v2.Resize(8)])
    plain = ImageFolder(folder.root, transform=small)
    mixed = AugmentedDataset(ConcatDataset([Subset(folder, [3, 0]), plain]), augment, 1)
    assert mixed.targets[:6] == [1, 0, 0, 0, 1, 1]
    assert mixed.classes == ["cat", "dog"]
    sizes = [mixed[i][0].shape[-1] for i in range(len(mixed))]
    assert sizes == [16, 16, 8, 8, 8, 8] * 2
    assert torch.equal(mixed[0][0], folder[3][0])


def test_the_untransformed_image_is_inverted_and_the_transform_runs_after(folder, augment):
    seen = []
    flipped = ImageFolder(folder.root, transform=v2.Compose([
        v2.Lambda(lambda image: seen.append(image.size) or image), v2.Resize(8), v2.Grayscale(1),
        TO_FLOAT, v2.Normalize([0.5], [0.5])]))
    image, _ = AugmentedDataset(flipped, augment, 1)[4]
    assert image.shape == (1, 8, 8) and image.min() < 0  # normalised after generation
    assert seen == [(16, 16)]
    assert flipped.transform is not None  # the user's dataset is untouched


@pytest.mark.parametrize("make, error, message", [
    (lambda f, a: AugmentedDataset(f, "paper"), ValueError, "synthesizer must be a Synth"),
    (lambda f, a: AugmentedDataset(iter([]), a), TypeError, "dataset must be map-style"),
    (lambda f, a: AugmentedDataset(TensorDataset(torch.rand(2, 1, 4, 4)), a)[0], ValueError,
     r"must give \(image, label\), sample 0 is a tuple of length 1"),
    (lambda f, a: AugmentedDataset(f, a)[999], IndexError, "index 999 is outside a dataset of 24"),
    (lambda f, a: AugmentedDataset(f, a)[:2], TypeError, "'slice' object cannot be interpreted"),
    (lambda f, a: AugmentedDataset(f, a).set_epoch(-1), ValueError,
     "epoch must be .*>= 0.* got -1"),
    *((lambda f, a, name=name: getattr(AugmentedDataset(TensorDataset(
        torch.rand(2, 1, 4, 4), torch.rand(2)), a), name), AttributeError,
       f"TensorDataset has no {name}") for name in ("classes", "targets")),
])
def test_wrong_use_is_refused(folder, augment, make, error, message):
    with pytest.raises(error, match=message):
        make(folder, augment)


@pytest.mark.parametrize("target_transform", [None, lambda label: label * 1])
def test_classes_are_asked_for_by_the_names_that_the_dataset_gives_them(
    class_folder, target_transform
):
    data = FakeData(2, (1, 16, 16), 2, TO_FLOAT, target_transform)
    data.classes, data.targets = ["down", "left"], [0, 1]
    synthesizer = Synthesizer(class_folder, "paper", steps=3, cache=None, device="cpu")
    images = [AugmentedDataset(data, synthesizer, 1)[2 + i] for i in range(2)]
    raw = [FakeData.__getitem__(data, i) for i in range(2)]
    assert len(raw) == 2 and synthesizer.conditioner.class_names is None  # stays as it was
    seeds = [v2.functional.to_pil_image(image) for image, _ in raw]
    by_name = [synthesizer.synthesize([seed], [data.classes[label]])[0]
               for seed, (_, label) in zip(seeds, raw, strict=True)]
    by_number = synthesizer.synthesize(seeds, [label for _, label in raw])
    for (made, _), named, numbered in zip(images, by_name, by_number, strict=True):
        assert torch.equal(made, TO_FLOAT(named)) and not torch.equal(made, TO_FLOAT(numbered))


def test_names_of_classes_are_not_put_on_labels_that_a_target_transform_changed(class_folder):
    data = FakeData(2, (1, 16, 16), 2, TO_FLOAT, target_transform=lambda label: 1 - label)
    data.classes = ["down", "left"]
    made = AugmentedDataset(data, Synthesizer(class_folder, "paper", cache=None), 1)
    assert made.synthesizer.conditioner.class_names is None
