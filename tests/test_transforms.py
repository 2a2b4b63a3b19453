import copy
import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from pictures import MODES, picture
from pipelines import pixel_pipeline
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from dreamda_aug import DreamDAugment, Synthesizer
from dreamda_aug.models import load_model
from dreamda_aug.models.unet import PixelModel

FAST = dict(preset="paper", steps=3, noise_scale=8.0, p=1.0, cache=None)


@pytest.fixture(scope="module")
def colour():
    return PixelModel(pixel_pipeline(channels=3), "tiny colour")


@pytest.fixture(scope="module")
def augment(colour):
    return DreamDAugment(colour, **FAST)


@pytest.mark.parametrize("mode", MODES)
def test_pil_images_come_back_in_their_mode_and_size(augment, mode):
    image = picture(mode)
    made = augment(image)
    assert (made.mode, made.size) == (mode, image.size)
    assert (np.asarray(made) != np.asarray(image)).any()
    if "A" in mode:
        assert made.getchannel("A").tobytes() == image.getchannel("A").tobytes()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16,
                                   torch.int16])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 20, 24), (2, 3, 16, 16)])
@pytest.mark.parametrize("kind", [torch.Tensor, tv_tensors.Image])
def test_tensors_come_back_in_their_type_dtype_and_shape(augment, dtype, shape, kind):
    image = torch.rand(shape)
    image = image.to(dtype) if dtype.is_floating_point else (image * 255).to(dtype)
    image = tv_tensors.Image(image) if kind is tv_tensors.Image else image
    made = augment(image)
    assert (type(made), made.dtype, made.shape) == (type(image), dtype, image.shape)
    assert (made != image).any()


def array_of(shape, dtype):
    values = np.random.default_rng(0).integers(0, 256, shape)
    return (values / 255 if np.dtype(dtype).kind == "f" else values).astype(dtype)


@pytest.mark.parametrize("shape, dtype", [
    ((16, 16), "u1"), ((20, 24), "<u2"), ((20, 24), ">u2"), ((16, 16), "i2"),
    ((16, 16, 1), "u1"), ((20, 24, 3), "u1"), ((16, 16, 4), "u1"), ((16, 16, 1), "i4"),
    ((16, 16, 3), "f4"), ((20, 24, 1), "f8"),
])
def test_arrays_come_back_in_their_dtype_and_shape(augment, shape, dtype):
    image = array_of(shape, dtype)
    given = image.copy()
    made = augment(image)
    assert (type(made), made.dtype, made.shape) == (np.ndarray, image.dtype, shape)
    assert (made != image).any() and np.array_equal(image, given)


def test_an_array_gives_what_the_pil_image_of_its_pixels_gives(augment):
    image = array_of((20, 24, 3), "u1")
    made = []
    for each in (image, image[::-1, ::-1].copy()[::-1, ::-1], PIL.Image.fromarray(image)):
        torch.manual_seed(7)
        made.append(np.asarray(augment(each)))
    assert np.array_equal(made[0], made[1]) and np.array_equal(made[0], made[2])


@pytest.mark.parametrize("label", [
    np.int64(3), np.uint8(3), np.array(3), np.array([3]), np.array([[3]], np.uint8),
    np.eye(4, dtype=np.uint8)[3], np.eye(4)[3], np.eye(5), np.eye(5, dtype=np.int64),
    torch.tensor(3), torch.tensor([3]), torch.eye(5), "cat", 3.5,
])
@pytest.mark.parametrize("make", [
    lambda image, label: (image, label), lambda image, label: (label, image),
    lambda image, label: {"image": image, "label": label},
])
def test_labels_beside_an_array_pass_through_untouched(augment, label, make):
    image = array_of((16, 16, 3), "u1")
    made = augment(make(image, label))
    values = list(made.values()) if isinstance(made, dict) else list(made)
    new, = (value for value in values if value is not label)
    assert len(values) == 2 and any(value is label for value in values)
    assert new.shape == image.shape and (new != image).any()


@pytest.mark.parametrize("image", [picture("RGB"), torch.rand(3, 16, 16)], ids=["PIL", "tensor"])
def test_arrays_beside_another_image_pass_through(augment, image):
    more = array_of((16, 15), "u1")
    made, same = augment(image, more)
    assert same is more and np.any(np.asarray(made) != np.asarray(image))


@pytest.mark.parametrize("sample, error, message", [
    ((array_of((16, 16), "f4"), np.eye(5)), TypeError,
     r"cannot tell which array .* \(16, 16\) of float32, \(5, 5\) of float64; give the image as"),
    (array_of((3, 16, 18), "u1"), ValueError, "an image array must have shape .* channels first"),
    (np.zeros((16, 16), bool), ValueError, "must be integer or float, got bool"),
])
def test_an_array_that_may_be_no_image_is_refused(augment, sample, error, message):
    with pytest.raises(error, match=message):
        augment(sample)


def test_a_grey_float_array_alone_is_the_image(augment):
    image = array_of((16, 16), "f4")
    made, label = augment(image, 3)
    assert (made.dtype, made.shape, label) == (image.dtype, image.shape, 3)
    assert (made != image).any()


def test_a_numpy_label_is_what_a_class_conditional_backbone_is_told():
    model = PixelModel(pixel_pipeline(channels=3, num_classes=3), "three classes")
    augment = DreamDAugment(model, **FAST)
    image, made = array_of((16, 16, 3), "u1"), []
    for label in (2, np.array([2]), np.array([[2]], np.uint8), np.int64(2), 1):
        torch.manual_seed(0)
        made.append(augment(image, label)[0].tobytes())
    assert made[0] == made[1] == made[2] == made[3] != made[4]
    with pytest.raises(ValueError, match=r"one integer.*, got float64 of shape \(3"):
        augment(image, np.eye(3)[2])


@pytest.mark.parametrize("make", [
    lambda image: (image, 3), lambda image: [image, 3], lambda image: {"image": image, "label": 3},
    lambda image: {"deep": (image, {"label": 3})},
])
def test_samples_keep_their_structure_and_labels(augment, make):
    image = picture("RGB")
    sample, made = make(image), augment(make(image))
    assert type(made) is type(sample) and repr(made).count("3") >= 1
    flat = str(sample).replace(hex(id(image)), "")
    assert type(flat) is str and made != sample


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


def test_no_model_is_loaded_before_the_first_image():
    DreamDAugment("nobody/never-loaded")


def test_it_works_in_compose_before_other_transforms(augment):
    pipeline = v2.Compose([augment, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    image, label = pipeline(picture("RGB"), 1)
    assert image.shape == (3, 24, 20) and label == 1


def test_arrays_go_on_to_torchvisions_transforms(augment):
    pipeline = v2.Compose([augment, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    image, label = pipeline(array_of((20, 24, 3), "u1"), np.int64(1))
    assert image.shape == (3, 20, 24) and 0 <= image.min() and image.max() <= 1 and label == 1


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


class Pictures(torch.utils.data.Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.transform(v2.functional.pil_to_tensor(picture("RGB")), index)


def test_it_works_in_spawned_workers(tmp_path):
    pixel_pipeline(channels=3).save_pretrained(tmp_path)
    augment = DreamDAugment(str(tmp_path), **{**FAST, "cache": tmp_path / "cache"})
    loader = DataLoader(Pictures(augment), 2, num_workers=1, multiprocessing_context="spawn")
    images, labels = next(iter(loader))
    assert images.shape == (2, 3, 24, 20) and labels.tolist() == [0, 1]


class Arrays(torch.utils.data.Dataset):
    """Rows of numpy arrays alone, as ``np.load`` gives them."""

    def __init__(self, images, labels, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform((self.images[index], self.labels[index]))


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 1), (16, 16, 3)])
def test_a_data_loader_collates_arrays(augment, shape):
    images, labels = array_of((4, *shape), "u1"), np.arange(4)
    batches = list(DataLoader(Arrays(images, labels, augment), 2))
    made = torch.cat([batch for batch, _ in batches])
    assert made.shape == images.shape and made.dtype == torch.uint8
    assert (made.numpy() != images).reshape(4, -1).any(1).all()
    assert torch.cat([batch for _, batch in batches]).tolist() == [0, 1, 2, 3]


def test_the_repr_shows_backbone_and_settings(augment):
    assert "tiny colour" in repr(augment) and "steps=3" in repr(augment)


@pytest.mark.parametrize("annotation, name", [
    (tv_tensors.BoundingBoxes([[0, 0, 1, 1]], format="XYXY", canvas_size=(16, 16)), "boxes"),
    (tv_tensors.Mask(torch.zeros(16, 16)), "masks"),
    (tv_tensors.Video(torch.zeros(2, 3, 16, 16)), "videos"),
])
def test_annotations_that_would_become_wrong_are_refused(augment, annotation, name):
    with pytest.raises(TypeError, match=f"samples with .*{name} cannot be augmented"):
        augment(picture("RGB"), annotation)


@pytest.mark.parametrize("wrong, error, message", [
    (dict(p=1.5), ValueError, r"p must lie in \[0, 1\], got 1.5"),
    (dict(labels_getter="first"), ValueError, "labels_getter must be .* or None"),
    (dict(prompt="a {thing}"), ValueError, r"prompt may use .* with thing"),
    (dict(class_names="cat"), ValueError, "class_names must be a list"),
    (dict(preset="best"), ValueError, "preset must be one of"),
    (dict(noise=1), TypeError, "'noise' is no setting"),
    (dict(generator=1), TypeError, "'generator' is no setting"),
])
def test_wrong_arguments_are_refused_when_it_is_made(wrong, error, message):
    with pytest.raises(error, match=message):
        DreamDAugment(**wrong)


def test_a_sample_without_an_image_is_refused(augment):
    with pytest.raises(TypeError, match="found no image in the sample"):
        augment({"label": 3})


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


def test_what_it_makes_is_what_its_synthesizer_makes_of_the_drawn_replica(augment):
    image = picture("RGB")
    torch.manual_seed(5)
    replica = int(augment.make_params([image])["replicas"][0])
    torch.manual_seed(5)
    made = augment(image)
    expected, = augment.synthesizer.synthesize([image], replicas=[replica])
    assert made.tobytes() == expected.tobytes()


def test_copies_and_pickles_make_the_same_images_and_share_a_lent_model(augment):
    image = picture("RGB")
    torch.manual_seed(0)
    expected = augment(image).tobytes()
    shared = copy.deepcopy(augment)
    assert shared.synthesizer is not augment.synthesizer
    assert shared.synthesizer.model is augment.synthesizer.model
    for clone in (shared, pickle.loads(pickle.dumps(augment))):
        torch.manual_seed(0)
        assert clone(image).tobytes() == expected
