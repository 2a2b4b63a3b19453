import copy
import pickle
import warnings

import numpy as np
import PIL.Image
import pytest
import torch
from pictures import MODES, picture
from pipelines import pixel_pipeline
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.datasets import ImageFolder, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from dreamda_aug import DreamDAugment, Synthesizer, calibrate
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
    ((16, 16, 3), "f4"), ((20, 24, 1), "f8"), ((16, 16), "f4"),
])
def test_arrays_come_back_in_their_dtype_and_shape(augment, shape, dtype):
    image = array_of(shape, dtype)
    given = image.copy()
    made = augment(image)
    assert (type(made), made.dtype, made.shape) == (np.ndarray, image.dtype, shape)
    assert (made != image).any() and np.array_equal(image, given)


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


@pytest.mark.parametrize("image", [picture("RGB"), array_of((24, 20, 3), "u1")], ids=type)
def test_it_works_in_compose_before_other_transforms(augment, image):
    pipeline = v2.Compose([augment, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    made, label = pipeline(image, np.int64(1))
    assert made.shape == (3, 24, 20) and 0 <= made.min() and made.max() <= 1 and label == 1


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


def test_what_was_calibrated_without_conditions_holds_without_labels(class_folder, tmp_path):
    synthesizer = Synthesizer(class_folder, steps=4, cache=tmp_path / "cache")
    calibrate(torch.rand(2, 1, 16, 16), synthesizer=synthesizer, max_distance=1.0, strengths=[0.6],
              replays=[0.5], noise_scales=[2.0], expansion_ratio=2)
    free = synthesizer.without_labels().settings
    assert (free.strength, free.replay, free.noise_scale) == (0.6, 0.5, 2.0)
    with pytest.warns(UserWarning, match="was not calibrated"):
        assert synthesizer.settings.strength == 0.5
    given = Synthesizer(class_folder, steps=5, strength=0.9, cache=None).without_labels().settings
    assert (given.strength, given.replay) == (0.9, 1.0)  # a strength that is given asks for replay


@pytest.mark.parametrize("options, message", [
    ({}, "no null class to do without.*wrap the dataset in AugmentedDataset"),
    ({"preset": "samples", "null_class": 3}, "keeps nothing of the seed image: images would be"),
])
def test_without_labels_what_would_lose_the_class_is_refused_at_the_first_sample(options, message):
    model = PixelModel(pixel_pipeline(num_classes=4), null_class=options.pop("null_class", None))
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


def test_a_batch_as_hugging_face_has_it_comes_back_as_one(class_folder):
    augment = DreamDAugment(class_folder, **FAST)
    images = [picture("L", (16, 16), i) for i in range(3)]
    torch.manual_seed(0)
    replicas = torch.cat(augment.make_params(images)["replicas"]).tolist()
    torch.manual_seed(0)
    made = augment({"label": [2, 0, 1], "image": images, "id": ["a", "b", "c"]})
    assert (made["label"], made["id"]) == ([2, 0, 1], ["a", "b", "c"])
    assert list(made) == ["label", "image", "id"]
    wanted = augment.synthesizer.synthesize(images, [2, 0, 1], replicas)
    assert [each.tobytes() for each in made["image"]] == [each.tobytes() for each in wanted]


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
