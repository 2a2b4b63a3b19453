"""Real samples with synthetic ones from a folder: what the live dataset gives, without a model."""

import os
import pickle
import shutil
import subprocess
import sys

import PIL.Image
import pytest
import torch
from expansion.folders import write_images
from pipelines import pixel_pipeline
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from dreamda_aug import AugmentedDataset, DreamDAugment
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion import expand
from dreamda_aug.models.unet import UNetModel

TO_FLOAT = v2.Compose([v2.Grayscale(1), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
pytestmark = pytest.mark.filterwarnings("ignore:.*colours of the seed images are lost")


@pytest.fixture(scope="module")
def augment():
    return DreamDAugment(UNetModel(pixel_pipeline()), "paper", steps=3, noise_scale=8.0,
                         cache=None, batch_size=4)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data"), {"cat": 2, "dog": 2})


@pytest.fixture(scope="module", params=["folder", "webdataset"])
def made(request, train, augment, tmp_path_factory):
    root = tmp_path_factory.mktemp("out") / request.param
    expand(train, root, augment, 3, image_format=request.param, shard_samples=8)
    return root


@pytest.mark.parametrize("indices", [range(4), [3, 0]])
def test_it_gives_what_the_augmented_dataset_gives_up_to_8_bit_rounding(
    train, augment, made, indices
):
    real = Subset(ImageFolder(train, transform=TO_FLOAT), indices)
    stored = AugmentedDataset.from_folder(real, made, with_origin=True)
    # the folder's own images are grey; torchvision's loader makes them RGB, which changes digests
    grey = ImageFolder(train, transform=TO_FLOAT, loader=PIL.Image.open)
    live = AugmentedDataset(Subset(grey, indices), augment, 3, with_origin=True)
    count = len(indices)
    assert len(stored) == len(live) == 4 * count and stored.left_out == 3 * (4 - count)
    assert stored.targets == live.targets and stored.classes == live.classes
    assert stored.class_to_idx == live.class_to_idx
    assert len(stored.real) == count and len(stored.synthetic) == 3 * count
    for i in range(4 * count):
        (image, label, origin), (expected, expected_label, expected_origin) = stored[i], live[i]
        assert label == expected_label and tuple(origin) == tuple(expected_origin)
        torch.testing.assert_close(image, expected, atol=1.01 / 255, rtol=0)


def test_any_number_of_workers_reads_the_same(train, made):
    stored = AugmentedDataset.from_folder(ImageFolder(train, transform=TO_FLOAT), made,
                                          with_origin=True)
    expected = torch.stack([stored[i][0] for i in range(16)])
    for workers in (0, 2):
        images = [batch[0] for batch in DataLoader(stored, 5, num_workers=workers)]
        assert torch.equal(torch.cat(images), expected)
    assert torch.equal(pickle.loads(pickle.dumps(stored))[15][0], expected[15])
    stored.set_epoch(3)
    assert stored[15][2].epoch == 0 and torch.equal(stored[15][0], expected[15])


def test_tensor_datasets_get_tensors_back(augment, tmp_path):
    images = torch.rand(3, 1, 16, 16)
    data = TensorDataset(images, torch.tensor([0, 1, 1]))
    expand(data, tmp_path / "out", augment, 2)
    stored = AugmentedDataset.from_folder(data, tmp_path / "out", transform=lambda x: x + 1)
    batch, labels = next(iter(DataLoader(stored, 9)))
    assert batch.shape == (9, 1, 16, 16) and labels.tolist() == [0, 1, 1, 0, 0, 1, 1, 1, 1]
    assert batch.dtype == torch.float32 and 1 <= batch.min() and batch.max() <= 2


def test_other_real_data_is_refused(train, made, tmp_path):
    other = write_images(tmp_path / "other", {"cow": 1})
    with pytest.raises(ExpansionError, match="none of its 12 images has its seed image"):
        AugmentedDataset.from_folder(ImageFolder(other), made)
    with pytest.raises(FileNotFoundError, match="plan.json: expected an expanded dataset"):
        AugmentedDataset.from_folder(ImageFolder(train), tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("made", ["folder"], indirect=True)
def test_a_stored_image_that_is_a_pipe_is_not_waited_for(train, made, tmp_path):
    out = shutil.copytree(made, tmp_path / "out")
    (out / "cat" / "00000000_0000.png").unlink()
    os.mkfifo(out / "cat" / "00000000_0000.png")
    with pytest.raises(ExpansionError, match="expected a regular file, found a FIFO"):
        _ = AugmentedDataset.from_folder(ImageFolder(train), out)[4]


@pytest.mark.parametrize("made", ["folder"], indirect=True)
def test_reading_back_loads_no_diffusion_model(train, made):
    code = (
        "import sys; from torchvision.datasets import ImageFolder\n"
        "from dreamda_aug import AugmentedDataset\n"
        f"data = AugmentedDataset.from_folder(ImageFolder({str(train)!r}), {str(made)!r})\n"
        "assert len(data) == 16 and data[7][0].size == (16, 16)\n"
        "assert 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_subset_that_was_itself_expanded_is_read_with_that_subset(augment, tmp_path):
    pixels = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    chosen = Subset(TensorDataset(pixels, torch.tensor([0, 1, 2, 1, 0])), [4, 1, 2])
    expand(chosen, tmp_path / "out", augment, 1)
    stored = AugmentedDataset.from_folder(chosen, tmp_path / "out", with_origin=True)
    assert stored.targets == [0, 1, 2, 0, 1, 2]
    assert [stored[i][2].index for i in range(3, 6)] == [0, 1, 2]
    with pytest.raises(ExpansionError, match="was made from 3 images, the real dataset has 5"):
        AugmentedDataset.from_folder(chosen.dataset, tmp_path / "out")
