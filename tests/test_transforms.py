import copy
import warnings

import numpy as np
import PIL.Image
import pytest
import torch
from pictures import array, kind_of, picture
from pipelines import pixel_pipeline
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.datasets import FakeData, ImageFolder, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from dreamda_aug import DreamDAugment, Synthesizer
from dreamda_aug.models import load_model
from dreamda_aug.models.unet import UNetModel

FAST = dict(preset="paper", steps=3, noise_scale=8.0, p=1.0, cache=None)


@pytest.fixture(scope="module")
def augment(colour):
    return DreamDAugment(colour, **FAST)


@pytest.mark.parametrize("image", [
    picture("RGBA"), picture("I;16"), array((20, 24), ">u2"), array((20, 24, 4)),
    torch.arange(960, dtype=torch.int16).reshape(2, 1, 20, 24),
    tv_tensors.Image(torch.rand(2, 3, 16, 16)),
], ids=lambda image: str(kind_of(image)))
def test_what_comes_back_is_of_the_kind_of_the_image(augment, image):
    given = np.asarray(image).copy()
    made = augment(image)
    assert kind_of(made) == kind_of(image)
    assert (np.asarray(made) != given).any() and np.array_equal(np.asarray(image), given)


@pytest.mark.parametrize("label", [
    np.int64(3), np.array(3), np.array([[3]], np.uint8), np.eye(4, dtype=np.uint8)[3], np.eye(5),
    torch.tensor([3]), torch.eye(5), "cat", 3.5,
])
@pytest.mark.parametrize("make", [
    lambda image, label: (image, label), lambda image, label: (label, image),
    lambda image, label: {"image": image, "label": label},
])
def test_labels_beside_an_array_pass_through_untouched(augment, label, make):
    image = array((16, 16, 3))
    made = augment(make(image, label))
    values = list(made.values()) if isinstance(made, dict) else list(made)
    new, = (value for value in values if value is not label)
    assert len(values) == 2 and any(value is label for value in values)
    assert new.shape == image.shape and (new != image).any()


@pytest.mark.parametrize("sample, error, message", [
    ((array((16, 16), "f4"), np.eye(5)), TypeError,
     r"cannot tell which array .* \(16, 16\) of float32, \(5, 5\) of float64; give the image as"),
    (array((3, 16, 18)), ValueError, "an image array must have shape .* channels first"),
    (np.zeros((16, 16), bool), ValueError, "must be integer or float, got bool"),
    ({"label": 3}, TypeError, "found no image in the sample"),
])
def test_what_may_be_no_image_is_refused(augment, sample, error, message):
    with pytest.raises(error, match=message):
        augment(sample)


def test_a_batch_is_replaced_image_by_image(colour):
    torch.manual_seed(3)
    augment = DreamDAugment(colour, **{**FAST, "p": 0.5})
    images, labels = torch.rand(16, 3, 16, 16), torch.arange(16)
    made, same_labels = augment(images, labels)
    changed = (made != images).flatten(1).any(1)
    assert 2 < changed.sum() < 14 and torch.equal(labels, same_labels)


def test_p_zero_changes_nothing_and_loads_no_model():
    augment = DreamDAugment("nobody/never-loaded", p=0.0)
    image = picture("RGB")
    assert augment(image, 1) == (image, 1)


def test_torch_manual_seed_decides_the_replica(augment):
    image = picture("RGB")
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(augment(image).tobytes())
    assert made[0] == made[1] != made[2]


def test_a_labels_getter_finds_the_label(sd_pipeline):
    augment = DreamDAugment(load_model(sd_pipeline), class_names=["a", "b"],
                            labels_getter=lambda sample: sample["meta"]["y"], **FAST)
    made = augment({"image": picture("RGB"), "meta": {"y": 1}})
    assert made["meta"] == {"y": 1}


def test_weights_stay_out_of_the_state_dict(augment):
    augment(picture("RGB"))
    assert augment.state_dict() == {} and list(augment.parameters()) == []
    assert list(augment.modules()) == [augment]


def test_it_works_in_spawned_workers(tmp_path):
    pixel_pipeline(channels=3).save_pretrained(tmp_path)
    augment = DreamDAugment(str(tmp_path), **{**FAST, "cache": tmp_path / "cache"})
    data = FakeData(2, (3, 24, 20), transform=v2.Compose([augment, v2.PILToTensor()]))
    loader = DataLoader(data, 2, num_workers=1, multiprocessing_context="spawn")
    images, labels = next(iter(loader))
    assert images.shape == (2, 3, 24, 20) and labels.tolist() == [data[0][1], data[1][1]]


def test_it_holds_a_synthesizer_that_brings_everything_but_p_and_the_labels_getter(colour):
    synthesizer = Synthesizer(colour, "paper", steps=3, cache=None)
    augment = DreamDAugment(synthesizer, p=1.0, labels_getter=None)
    assert augment.synthesizer is synthesizer and augment.p == 1.0
    assert DreamDAugment(colour, **FAST).synthesizer.requested_settings.steps == 3
    with pytest.raises(TypeError, match="brings its own settings; give preset and steps, cache to"):
        DreamDAugment(synthesizer, steps=4, cache=None)
    with pytest.raises(TypeError, match="brings its own settings; give preset and settings to it"):
        DreamDAugment(synthesizer, "paper")


@pytest.mark.parametrize(("options", "size"), [
    ({}, 32), ({"compile": True}, 1), ({"compile": True, "batch_size": 8}, 8)])
def test_with_compile_an_image_per_call_fills_no_batch_up(options, size):
    assert DreamDAugment(**options).synthesizer.batch_size == size


def one_replica(augment, image):
    """What a transform will draw next for one image, with p = 1."""
    state = torch.get_rng_state()
    replica = int(augment.make_params([image])["replicas"][0])
    torch.set_rng_state(state)
    return replica


@pytest.fixture
def grey_folder(tmp_path):
    for label, name in enumerate(("down", "left", "up")):
        (tmp_path / "grey" / name).mkdir(parents=True)
        picture("L", (16, 16), label).save(tmp_path / "grey" / name / "0.png")
    return tmp_path / "grey"


def test_without_labels_the_first_sample_warns_and_images_stay_close(class_folder, grey_folder):
    augment = DreamDAugment(class_folder, steps=4, cache=None, p=1e-9)
    data = ImageFolder(grey_folder, v2.Compose([augment, v2.Grayscale(1)]), loader=PIL.Image.open)
    with pytest.warns(UserWarning, match="no label.*.strength 0.3, replay 0, noise .*AugmentedData"
                                         "set.*dataset.transforms.*labels_getter") as told:
        image, label = data[2]
    assert len(told) == 1 and label == 2 and image.tobytes() == picture("L", (16, 16), 2).tobytes()
    augment.p, free = 1.0, DreamDAugment(augment.synthesizer, p=1.0, labels_getter=None)
    expected = Synthesizer(class_folder, steps=4, cache=None, strength=0.3, replay=0.0,
                           noise_scale=1.0, guidance_scale=1.0)
    replica = one_replica(augment, image)
    wanted, = expected.synthesize([image], None, [replica])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said once; and None for the getter wants it so
        for each in (augment, free):
            state = torch.get_rng_state()
            assert each(image).tobytes() == wanted.tobytes()
            torch.set_rng_state(state)


def test_without_labels_a_text_model_takes_the_empty_prompt(sd_pipeline):
    model, image = load_model(copy.deepcopy(sd_pipeline)), picture("RGB", (16, 16))
    augment = DreamDAugment(model, class_names=["a", "b"], **FAST)
    replica = one_replica(augment, image)
    with pytest.warns(UserWarning, match="found no label in the sample"):
        made = augment({"image": image, "id": 3})["image"]
    expected = Synthesizer(model, "paper", steps=3, noise_scale=8.0, cache=None, prompt="")
    wanted, = expected.synthesize([image], replicas=[replica])
    # guidance between two rows that are alike rounds
    assert abs(np.asarray(made).astype(int) - np.asarray(wanted)).max() <= 1


@pytest.mark.parametrize("options, message", [
    ({}, "no null class to do without.*wrap the dataset in AugmentedDataset"),
    ({"preset": "samples", "null_class": 3}, "keeps nothing of the seed image: images would be"),
])
def test_without_labels_what_would_lose_the_class_is_refused_at_the_first_sample(options, message):
    model = UNetModel(pixel_pipeline(num_classes=4), null_class=options.pop("null_class", None))
    augment = DreamDAugment(model, p=1e-9, cache=None, **options)
    assert augment(picture("L"), 3)[1] == 3  # with a label nothing is in the way
    with pytest.raises(ValueError, match=f"found no label in the sample.*{message}"):
        augment(picture("L"))


def test_torchvisions_joint_transforms_hand_over_the_label(class_folder, grey_folder):
    augment = DreamDAugment(class_folder, **FAST)
    data = wrap_dataset_for_transforms_v2(ImageFolder(grey_folder, loader=PIL.Image.open))
    data.transforms = v2.Compose([augment, v2.PILToTensor()])
    seed = picture("L", (16, 16), 1)
    replica = one_replica(augment, seed)
    image, label = data[1]
    wanted, = augment.synthesizer.synthesize([seed], [1], [replica])
    assert label == 1 and torch.equal(image, v2.functional.pil_to_tensor(wanted))


class Photo(PIL.Image.Image):
    """A subclass as fastai's, whose transforms are chosen by the class of an image."""


def test_subclasses_of_images_and_tensors_stay_what_they_are(augment):
    image = picture("RGB")
    image.__class__ = Photo
    tensor = torch.rand(3, 16, 16).as_subclass(type("Meta", (torch.Tensor,), {}))
    tensor.affine = "kept"
    made, same = augment(image), augment({"image": tensor, "label": 0})["image"]
    assert type(made) is Photo and made.tobytes() != image.tobytes()
    assert type(same) is type(tensor) and same.affine == "kept" and (same != tensor).any()
