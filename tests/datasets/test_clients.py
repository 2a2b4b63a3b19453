"""Datasets and trainers of other libraries around an `AugmentedDataset`."""

import numpy as np
import PIL.Image
import pytest
import torch
from pictures import array
from pipelines import pixel_pipeline
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset
from torchvision.transforms import v2

from dreamda_aug import AugmentedDataset, DreamDAugment, Synthesizer
from dreamda_aug.datasets import Origin
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion import expand, read_manifest
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.models.unet import UNetModel

TO_FLOAT = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


@pytest.fixture(scope="module")
def synthesizer():
    return Synthesizer(UNetModel(pixel_pipeline()), "paper", steps=3, noise_scale=8.0,
                       cache=None, batch_size=4)


class Rows:
    """A dataset of given samples."""

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def test_dicts_stay_dicts_and_what_else_they_hold_stays_with_the_seed(synthesizer):
    rows = Rows(*({"image": image, "label": i, "patient": f"p{i}"}
                  for i, image in enumerate(array((2, 16, 16)))))
    both = AugmentedDataset(rows, synthesizer, 2, transform=TO_FLOAT, with_origin=True)
    sample = both[4]
    assert sample.keys() == {"image", "label", "patient", "origin"}
    assert sample["patient"] == "p1" and sample["label"] == 1
    assert sample["origin"] == Origin(True, 1, 0, 0) and sample["image"].dtype == torch.float32
    batch = next(iter(DataLoader(both, 6)))
    assert batch["image"].shape == (6, 1, 16, 16) and batch["origin"].index.tolist()[-1] == 1


@pytest.mark.parametrize("make", [
    lambda image, i: (image, i), lambda image, i: (image, i, 10 + i),
    lambda image, i: {"img": PIL.Image.fromarray(image), "labels": torch.tensor(i)},
])
def test_expand_takes_the_same_rows_and_reads_them_back(synthesizer, tmp_path, make):
    rows = Rows(*(make(image, i) for i, image in enumerate(array((3, 16, 16)))))
    assert expand(rows, tmp_path / "out", synthesizer, 2).stats.images == {"0": 2, "1": 2, "2": 2}
    stored = AugmentedDataset.from_folder(rows, tmp_path / "out")
    live = AugmentedDataset(rows, synthesizer, 2)
    assert len(stored) == len(live) == 9
    for i in range(9):
        sample, expected = stored[i], live[i]
        if isinstance(sample, dict):
            assert sample.keys() == expected.keys()
            sample, expected = tuple(sample.values()), tuple(expected.values())
        assert sample[1:] == expected[1:]
        difference = np.asarray(sample[0]).astype(int) - np.asarray(expected[0])
        assert abs(difference).max() <= 1


def test_labels_after_a_target_transform_are_expanded(synthesizer, tmp_path):
    class Digits(TensorDataset):
        classes = ["zero", "one", "two", "three"]
        target_transform = staticmethod(lambda label: label % 2)

        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image, self.target_transform(int(label))

    data = Digits(torch.rand(4, 1, 16, 16), torch.arange(4))
    data.targets = [0, 1, 2, 3]
    with pytest.raises(ValueError, match="class_names must be given for a dataset whose target"):
        expand(data, tmp_path / "out", synthesizer, 1)
    source = open_seed_images(data, class_names=["even", "odd"])
    assert expand(source, tmp_path / "out", synthesizer, 1).stats.images == {"even": 2, "odd": 2}
    stored = AugmentedDataset.from_folder(data, tmp_path / "out")
    assert stored.targets == [stored[i][1] for i in range(8)] == [0, 1] * 4
    live = AugmentedDataset(data, synthesizer, 1)
    assert live.targets == [live[i][1] for i in range(8)] == [0, 1] * 4
    data.target_transform = lambda label: 1 - label % 2
    with pytest.raises(ExpansionError, match="was of class 'even', in the real dataset it is"):
        AugmentedDataset.from_folder(data, tmp_path / "out")


def test_a_sample_that_is_there_twice_gets_replicas_of_its_own(synthesizer):
    data = TensorDataset(torch.rand(2, 1, 16, 16), torch.tensor([0, 1]))
    once = AugmentedDataset(data, synthesizer, 2)
    twice = AugmentedDataset(Subset(data, [1, 0, 1]), synthesizer, 2)
    alone = AugmentedDataset(Subset(data, [1]), synthesizer, 4)
    made = [twice[3 + i][0] for i in (0, 1, 4, 5)]
    assert len({image.numpy().tobytes() for image in made}) == 4
    for image, expected in zip(made, (alone[1 + i][0] for i in range(4))):
        torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(made[0], once[4][0], atol=1e-5, rtol=0)
    joined = AugmentedDataset(ConcatDataset([data, data]), synthesizer, 1)
    assert not torch.allclose(joined[4][0], joined[6][0])


@pytest.fixture
def table():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(),
                                  "label": datasets.ClassLabel(names=["cat", "dog"])})
    images = list(map(PIL.Image.fromarray, array((4, 16, 16))))
    return datasets.Dataset.from_dict({"image": images, "label": [0, 1, 1, 0]}, features=features)


def test_hugging_face_datasets_can_be_augmented_and_expanded(table, synthesizer, tmp_path):
    both = AugmentedDataset(table, synthesizer, 2)
    assert both.classes == ["cat", "dog"] and both.targets[:4] == [0, 1, 1, 0]
    sample = both[4]
    assert sample.keys() == {"image", "label"} and isinstance(sample["image"], PIL.Image.Image)
    assert expand(table, tmp_path / "out", synthesizer, 2).stats.images == {"cat": 4, "dog": 4}
    stored = AugmentedDataset.from_folder(table, tmp_path / "out")
    assert [stored[i]["label"] for i in range(12)] == both.targets
    assert {line.class_name for line in read_manifest(tmp_path / "out")} == {"cat", "dog"}


def test_a_hugging_face_trainer_trains_on_it(table, synthesizer, tmp_path):
    transformers = pytest.importorskip("transformers")

    def transform(batch):
        return {"pixel_values": [TO_FLOAT(image) for image in batch["image"]],
                "labels": batch["label"]}

    both = AugmentedDataset(table.with_transform(transform), synthesizer, 2)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(256, 2)
            self.seen = []

        def forward(self, pixel_values, labels):
            self.seen += labels.tolist()
            logits = self.layer(pixel_values.flatten(1))
            return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

    model = Model()
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=5, num_train_epochs=1, report_to=[],
        use_cpu=True, disable_tqdm=True, save_strategy="no", logging_strategy="no")
    done = transformers.Trainer(model, arguments, train_dataset=both).train()
    assert done.global_step == 3 and sorted(model.seen) == [0] * 6 + [1] * 6
    assert np.isfinite(done.training_loss)


@pytest.mark.parametrize("how", ["map", "map in batches", "with_transform", "set_transform"])
def test_a_hugging_face_dataset_hands_the_transform_images_and_labels(table, class_folder, how):
    augment = DreamDAugment(class_folder, "paper", steps=3, cache=None, p=1.0,
                            class_names=["up", "left"])
    images, features = list(table["image"]), table.features
    calls = [[image] for image in images] if how == "map" else [images]
    torch.manual_seed(0)
    replicas = torch.cat([torch.cat(augment.make_params(call)["replicas"]) for call in calls])
    torch.manual_seed(0)
    if how.startswith("map"):
        made = table.map(augment, batched=how != "map")
        assert made.features == features
        made = made[:]
    elif how == "with_transform":
        made = table.with_transform(augment)[:]
    else:
        table.set_transform(augment)
        made = table[:]
    expected = augment.synthesizer.synthesize(images, [0, 1, 1, 0], replicas.tolist())
    assert list(made) == ["image", "label"] and made["label"] == [0, 1, 1, 0]
    for one, other in zip(made["image"], expected, strict=True):
        # batches of one and of four differ in the last bit
        assert abs(np.asarray(one).astype(int) - np.asarray(other)).max() <= 1


@pytest.fixture
def class_folders(tmp_path):
    for name, image in zip(("cat", "dog"), array((2, 16, 16, 3)), strict=True):
        (tmp_path / name).mkdir()
        PIL.Image.fromarray(image).save(tmp_path / name / "0.png")
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*colours of the seed images are lost")
def test_timms_loader_sets_the_transform_that_runs_last(class_folders, synthesizer):
    timm = pytest.importorskip("timm.data")
    both = AugmentedDataset(timm.ImageDataset(str(class_folders)), synthesizer, 2)
    loader = timm.create_loader(both, (3, 8, 8), 6, use_prefetcher=False, num_workers=0,
                                mean=(0.0,) * 3, std=(1.0,) * 3)
    images, labels = next(iter(loader))
    assert images.shape == (6, 3, 8, 8) and labels.tolist() == [0, 1, 0, 0, 1, 1]
    assert not torch.equal(images[2], images[0])


def test_monais_transforms_that_load_the_file_come_first(synthesizer, tmp_path):
    monai = pytest.importorskip("monai.transforms")
    loading = monai.Compose([
        monai.LoadImaged("image", ensure_channel_first=True, reverse_indexing=False),
        monai.ScaleIntensityRanged("image", 0, 255, 0.0, 1.0)])
    PIL.Image.fromarray(array((16, 16))).save(tmp_path / "0.png")
    sample = {"image": str(tmp_path / "0.png"), "label": 1}
    augment, loaded = DreamDAugment(synthesizer, p=1.0), loading(sample)
    made = augment(loaded)
    assert type(made["image"]) is type(loaded["image"]) and made["label"] == 1
    assert made["image"].meta == loaded["image"].meta
    assert (np.asarray(made["image"]) != np.asarray(loaded["image"])).any()
    with pytest.raises(TypeError, match="behind the transform that loads the file, such as MONAI"):
        augment(sample)


@pytest.mark.filterwarnings("ignore:.*colours of the seed images are lost")
def test_torchgeos_transforms_of_whole_dicts_run_after_generation(class_folders, synthesizer):
    torchgeo = pytest.importorskip("torchgeo.datasets")

    class Scaled(torchgeo.NonGeoClassificationDataset):
        def _load_image(self, index):
            image, label = super()._load_image(index)
            return image / 255, label

    def flip(sample):
        return {**sample, "image": -sample["image"]}

    both = AugmentedDataset(Scaled(class_folders, transforms=flip), synthesizer, 1)
    made = both[3]
    assert made.keys() == {"image", "label"} and made["label"] == 1 and both.targets == [0, 1] * 2
    assert made["image"].shape == (3, 16, 16) and made["image"].max() <= 0 > made["image"].min()


def test_fastais_images_stay_what_its_transforms_are_chosen_by(synthesizer):
    vision = pytest.importorskip("fastai.vision.core")
    image = vision.PILImage.create(array((16, 16, 3)))
    assert type(DreamDAugment(synthesizer, p=1.0)(image)) is vision.PILImage
