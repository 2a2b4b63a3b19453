import copy
import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import pixel_pipeline
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from dreamda_aug import DreamDAugment, LatentCache
from dreamda_aug.backbones import load_backbone
from dreamda_aug.backbones.unet import PixelBackbone
from dreamda_aug.errors import GenerationError

FAST = dict(preset="paper", steps=3, noise_scale=8.0, p=1.0, cache=None)


@pytest.fixture(scope="module")
def grey():
    return PixelBackbone(pixel_pipeline(), "tiny")


@pytest.fixture(scope="module")
def colour():
    return PixelBackbone(pixel_pipeline(channels=3), "tiny colour")


@pytest.fixture(scope="module")
def augment(colour):
    return DreamDAugment(colour, **FAST)


def picture(mode, size=(20, 24)):
    array = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = PIL.Image.fromarray(array)
    if mode == "I;16":
        return PIL.Image.fromarray(array[..., 0].astype(np.uint16) * 16)
    if mode in ("I", "F"):
        return PIL.Image.fromarray(array[..., 0].astype(np.int32 if mode == "I" else np.float32))
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(PIL.Image.fromarray(array[..., 1]))
        return image
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16", "I", "F", "CMYK"])
def test_pil_images_come_back_in_their_mode_and_size(augment, mode):
    image = picture(mode)
    made = augment(image)
    assert (made.mode, made.size) == (mode, image.size)
    assert (np.asarray(made) != np.asarray(image)).any()
    if "A" in mode:
        assert made.getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_a_16_bit_image_stays_in_its_own_window(augment):
    made = np.asarray(augment(picture("I;16")))
    assert made.dtype == np.uint16 and made.max() <= 255 * 16 and made.max() > 255


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


def test_torch_manual_seed_decides_the_replica(augment):
    image = picture("RGB")
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(augment(image).tobytes())
    assert made[0] == made[1] != made[2]


def test_the_inversion_is_cached_across_calls(colour, tmp_path):
    augment = DreamDAugment(colour, **{**FAST, "cache": tmp_path})
    image = picture("RGB")
    first, second = augment(image), augment(image)
    assert augment.generator.inversions == 1
    assert first.tobytes() != second.tobytes()


def test_prompts_are_made_from_class_names(sd_pipeline):
    backbone = load_backbone(sd_pipeline)
    told = []
    embed = backbone.embed
    backbone.embed = lambda conditions: told.extend(conditions) or embed(conditions)
    augment = DreamDAugment(backbone, class_names=["hot_dog", "apple"], **FAST)
    augment((picture("RGB"), 0))
    augment({"image": picture("RGB"), "label": torch.tensor(1)})
    augment(torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))
    assert [t for t in told if t] == [
        "A photo of a hot dog.", "A photo of an apple.", "A photo of a hot dog.",
        "A photo of an apple."]


def test_the_prompt_may_be_a_function_or_a_plain_sentence(sd_pipeline):
    backbone = load_backbone(sd_pipeline)
    told = []
    embed = backbone.embed
    backbone.embed = lambda conditions: told.extend(conditions) or embed(conditions)
    DreamDAugment(backbone, prompt=lambda label: f"number {label}", **FAST)((picture("RGB"), 7))
    DreamDAugment(backbone, prompt="an X-ray", **FAST)(picture("RGB"))
    assert [t for t in told if t] == ["number 7", "an X-ray"]


def test_a_labels_getter_finds_the_label(sd_pipeline):
    augment = DreamDAugment(load_backbone(sd_pipeline), class_names=["a", "b"],
                            labels_getter=lambda sample: sample["meta"]["y"], **FAST)
    made = augment({"image": picture("RGB"), "meta": {"y": 1}})
    assert made["meta"] == {"y": 1}


def test_weights_stay_out_of_the_state_dict(augment):
    augment(picture("RGB"))
    assert augment.state_dict() == {} and list(augment.parameters()) == []
    assert list(augment.modules()) == [augment]


def test_copies_drop_the_loaded_model_and_make_the_same_images(tmp_path):
    pixel_pipeline(channels=3).save_pretrained(tmp_path)
    augment = DreamDAugment(str(tmp_path), **FAST)
    image = picture("RGB")
    torch.manual_seed(0)
    expected = augment(image)
    for clone in (pickle.loads(pickle.dumps(augment)), copy.deepcopy(augment)):
        assert clone._generator is None
        torch.manual_seed(0)
        assert clone(image).tobytes() == expected.tobytes()


def test_a_backbone_object_survives_pickling_and_is_shared_by_deep_copies(augment):
    assert copy.deepcopy(augment).backbone is augment.backbone
    clone = pickle.loads(pickle.dumps(augment))
    image = picture("RGB")
    torch.manual_seed(0)
    expected = augment(image).tobytes()
    torch.manual_seed(0)
    assert clone(image).tobytes() == expected


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


def test_the_repr_shows_backbone_and_settings(augment):
    assert "tiny colour" in repr(augment) and "steps=3" in repr(augment)


def test_colours_lost_on_a_grey_backbone_are_said(grey):
    with pytest.warns(UserWarning, match="colours of the seed images are lost"):
        DreamDAugment(grey, **FAST)(picture("RGB"))


@pytest.mark.parametrize("annotation, name", [
    (tv_tensors.BoundingBoxes([[0, 0, 1, 1]], format="XYXY", canvas_size=(16, 16)), "boxes"),
    (tv_tensors.Mask(torch.zeros(16, 16)), "masks"),
    (tv_tensors.Video(torch.zeros(2, 3, 16, 16)), "videos"),
])
def test_annotations_that_would_become_wrong_are_refused(augment, annotation, name):
    with pytest.raises(TypeError, match=f"cannot keep .*{name}"):
        augment(picture("RGB"), annotation)


@pytest.mark.parametrize("image, message", [
    (torch.full((3, 16, 16), float("nan")), "NaN or infinite"),
    (torch.randn(3, 16, 16) * 3, r"must lie in \[0, 1\], got values from .*before Normalize"),
    (torch.rand(5, 16, 16), "must have 1 or 3 channels, got 5"),
    (torch.rand(16, 16), r"must have shape \(C, H, W\) or \(B, C, H, W\), got \(16, 16\)"),
    (torch.ones(3, 16, 16, dtype=torch.bool), "must be integer or float, got torch.bool"),
])
def test_bad_images_are_refused(augment, image, message):
    with pytest.raises(ValueError, match=message):
        augment(image)


@pytest.mark.parametrize("sample, settings, message", [
    ((picture("RGB"), 2), dict(class_names=["a", "b"]), "label 2 is outside class_names"),
    ((picture("RGB"), "z"), dict(class_names=["a", "b"]), "label 'z' is not one of class_names"),
    ((picture("RGB"), 0), {}, "class_names must be given"),
    (picture("RGB"), dict(class_names=["a"]), "found no label in the sample"),
    ((picture("RGB"), 0), dict(class_names=["a"], labels_getter=None), "labels_getter=None, but"),
    ((torch.rand(2, 3, 16, 16), torch.rand(2, 4)), dict(class_names=["a"]), "before MixUp"),
])
def test_bad_labels_are_refused(sd_pipeline, sample, settings, message):
    with pytest.raises(ValueError, match=message):
        DreamDAugment(load_backbone(sd_pipeline), **FAST, **settings)(sample)


@pytest.mark.parametrize("wrong, error, message", [
    (dict(p=1.5), ValueError, r"p must lie in \[0, 1\], got 1.5"),
    (dict(labels_getter="first"), ValueError, "labels_getter must be 'default'"),
    (dict(prompt="a {thing}"), ValueError, r"prompt may use .* with thing"),
    (dict(class_names="cat"), TypeError, "class_names must be a list"),
    (dict(preset="best"), ValueError, "preset must be one of"),
    (dict(noise=1), TypeError, "'noise' is no setting"),
])
def test_wrong_arguments_are_refused_when_it_is_made(wrong, error, message):
    with pytest.raises(error, match=message):
        DreamDAugment(**wrong)


@pytest.mark.parametrize("loading", [{"device": "cpu"}, {"dtype": torch.float16},
                                     {"low_memory": True}])
def test_arguments_of_loading_are_refused_for_a_loaded_backbone(colour, loading):
    with pytest.raises(ValueError, match="this backbone is loaded already.*give them to load_"):
        DreamDAugment(colour, **loading)


def test_a_sample_without_an_image_is_refused(augment):
    with pytest.raises(TypeError, match="found no image in the sample"):
        augment({"label": 3})


def test_cuda_in_a_forked_worker_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr("dreamda_aug.transforms.get_worker_info", lambda: object())
    with pytest.raises(GenerationError, match="multiprocessing_context='spawn'"):
        DreamDAugment(device="cuda", p=1.0)(picture("L"))


def test_a_cache_object_is_taken_as_it_is(colour, tmp_path):
    cache = LatentCache(tmp_path, max_bytes=10**6)
    assert DreamDAugment(colour, cache=cache).cache is cache
