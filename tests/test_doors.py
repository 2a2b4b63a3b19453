"""Every kind of image and label through every door: the same pixels and class, or one refusal."""

from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from pictures import MODES, array, kind_of, picture
from pipelines import pixel_pipeline
from torch.utils.data import Dataset
from torchvision import tv_tensors

from dreamda_aug import AugmentedDataset, DreamDAugment, Synthesizer
from dreamda_aug.adaptation.training_images import read_images
from dreamda_aug.amst.batches import MixedImages
from dreamda_aug.calibration.automatic import draw_sample
from dreamda_aug.evaluation.draw import Small
from dreamda_aug.expansion import expand, regenerate
from dreamda_aug.inputs.pixels import fit_to, read_pixels
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.metrics import extract_features
from dreamda_aug.metrics.features import pixel_features
from dreamda_aug.models.unet import UNetModel
from dreamda_aug.report.explorer import explore

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CLASSES = ["ant", "bee", "cat"]
DOORS = ["transform", "dataset", "expand", "regenerate", "calibrate", "adapt", "evaluate",
         "preview", "explore", "pool of AMST"]


class Rows(Dataset):
    """Two images of one kind; the first is of class 2."""

    classes = CLASSES

    def __init__(self, image, label=2, other=None):
        self.samples = [(image, label), (image if other is None else other, 0)]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.samples[index]


@pytest.fixture(scope="module")
def model():
    return UNetModel(pixel_pipeline(num_classes=3, channels=3), "three classes")


@pytest.fixture
def synthesizer(model):
    return Synthesizer(model, "paper", steps=2, strength=0.5, cache=None, class_names=CLASSES)


@pytest.fixture
def door(model, synthesizer, monkeypatch, tmp_path):
    """From a name and a dataset to pixels in the model's size, and class, of its first sample."""
    seen, asked, out = [], [], tmp_path / "out"
    encode, embed = model.encode, model.embed
    monkeypatch.setattr(model, "encode", lambda images: seen.append(images) or encode(images))
    monkeypatch.setattr(model, "embed", lambda given: asked.extend(given) or embed(given))

    def made_by(work):
        work()
        return seen[0][:1], next(label for label in asked if label is not None)

    def again(data):
        if not out.exists():  # the door of expand did not take them
            expand(Rows(tensor(torch.uint8)), out, synthesizer, 1)
            seen.clear()
        made = regenerate(out, "00000000_0000", synthesizer=synthesizer, source=data)
        assert made.equal
        return seen[0][:1], made.line.class_name

    def calibrate(data):
        images = open_seed_images(data)
        sample = draw_sample(images, range(2), model, lambda index: index)
        row = sample.conditions.index(0)
        return sample.images[row:row + 1], images.labels[0]

    def adapt(data):
        plain = SimpleNamespace(encode=lambda images: images, channels=3, image_size=(16, 16),
                                name="plain")
        images = read_images(open_seed_images(data), plain, 0.0, 0)
        row = images.labels.tolist().index(2)
        return images.x_0[row:row + 1], 2

    def evaluate(data):
        images = open_seed_images(data).labeled()
        return Small(3, (16, 16)).read(images)[:1] / 255, images.labels[0]

    def preview(data):
        images = open_seed_images(data)
        return fit_to(images.read(0).values, model), images.labels[0]

    def page(data):
        found = explore(data, synthesizer, images=2, steps=2, strengths=[0.5], replays=[1.0],
                        noise_scales=[0.0])
        row = [label for _, label in found.seeds].index("cat")
        return seen[0][row:row + 1], "cat"

    def pool(data):
        made = AugmentedDataset(data, synthesizer, 1,
                                transform=lambda image: read_pixels(image).values[0])
        labeled = [(torch.zeros(3, 16, 16), 0)]
        batch = MixedImages(labeled, made.synthetic, 3)[[1]]
        return seen[0][:1], batch.seed_labels.item()

    doors = dict(zip(DOORS, [
        lambda data: made_by(lambda: DreamDAugment(synthesizer, p=1.0)(data[0])),
        lambda data: made_by(lambda: AugmentedDataset(data, synthesizer, 1)[2]),
        lambda data: made_by(lambda: expand(data, out, synthesizer, 1)),
        again, calibrate, adapt, evaluate, preview, page, pool], strict=True))

    def opened(name, data):
        seen.clear()
        asked.clear()
        return doors[name](data)

    return opened


def tensor(dtype, channels=3):
    values = torch.randint(256, (channels, 16, 16), generator=torch.Generator().manual_seed(0))
    return values.div(255).to(dtype) if dtype.is_floating_point else values.to(dtype)


IMAGES = {
    **{f"PIL {mode}": picture(mode, (16, 16)) for mode in MODES},
    **{str(dtype): tensor(dtype) for dtype in (
        torch.uint8, torch.int16, torch.uint16, torch.float32, torch.float16, torch.bfloat16,
        torch.float64)},
    "grey bytes": tensor(torch.uint8, 1), "grey floats": tensor(torch.float32, 1),
    "tv_tensors": tv_tensors.Image(tensor(torch.uint8)),
    **{f"array {shape} {dtype}": array(shape, dtype) for shape, dtype in (
        ((16, 16), "u1"), ((16, 16, 3), "u1"), ((16, 16, 4), "u1"), ((16, 16), "<u2"),
        ((16, 16), "f4"), ((16, 16, 1), "f8"), ((16, 16, 3), "i4"))},
}
# what is plainly one integer, in turn
LABELS = [2, np.int64(2), torch.tensor(2), [2], np.array([2])]


def other_than(image):
    """Another image of the same kind."""
    if isinstance(image, PIL.Image.Image):
        return picture(image.mode, (16, 16), rng_seed=1)
    return image[::-1].copy() if isinstance(image, np.ndarray) else image.flip(-1)


@pytest.mark.parametrize("kind", IMAGES)
def test_every_door_sees_the_same_pixels_and_class(door, model, synthesizer, kind, tmp_path):
    """And what is stored comes back as the live image would be."""
    image = IMAGES[kind]
    expected = fit_to(read_pixels(image).values, model)
    data = Rows(image, LABELS[list(IMAGES).index(kind) % len(LABELS)], other_than(image))
    for name in DOORS:
        values, label = door(name, data)
        near = 0.51 / 255 if name == "evaluate" else 1e-6
        torch.testing.assert_close(values, expected, atol=near, rtol=0, msg=name)
        assert label in (2, "cat"), name
    made, live = (dataset[2][0] for dataset in (
        AugmentedDataset.from_folder(data, tmp_path / "out"),
        AugmentedDataset(data, synthesizer, 1)))
    assert kind_of(made) == kind_of(live)
    difference = read_pixels(made).values - read_pixels(live).values
    assert difference.abs().mean() < (0.05 if kind in ("PIL 1", "PIL P") else 1.5 / 255)


MASK = PIL.Image.new("L", (16, 16))
WRONG = {
    "bytes as floats": (torch.rand(3, 16, 16) * 255, 2),
    "NaN": (torch.full((3, 16, 16), np.nan), 2),
    "normalised": (torch.linspace(-2, 2, 768).reshape(3, 16, 16), 2),
    "2 channels": (torch.rand(2, 16, 16), 2), "4 channels": (torch.rand(4, 16, 16), 2),
    "half, outside": (torch.full((1, 16, 16), 7.0, dtype=torch.bfloat16), 2),
    "truth values": (np.ones((16, 16), bool), 2), "array of 2 channels": (array((16, 16, 2)), 2),
    **{f"label {label!r:.20}": (tensor(torch.uint8), label) for label in (
        0.37, 2.0, None, True, "dog", 7, -1, 10**400, {"a": 1}, [0, 1, 1], torch.eye(3)[2],
        torch.tensor(2.0), np.float32(1), torch.tensor([0, 1, 1]))},
    "mask": (picture("RGB", (16, 16)), MASK), "mask beside grey": (MASK, MASK),
    "tensor mask": (tensor(torch.uint8), torch.zeros(16, 16, dtype=torch.int64)),
    "tv mask": (tensor(torch.uint8), tv_tensors.Mask(torch.zeros(16, 16))),
    "boxes": (tensor(torch.uint8), torch.rand(5, 4)),
    "detection": (tensor(torch.uint8), {"boxes": torch.rand(5, 4), "labels": torch.ones(5)}),
    "COCO": (tensor(torch.uint8), [{"bbox": [0, 0, 1, 1], "category_id": 3}]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_every_door_refuses_with_the_same_words(door, kind):
    refusals = {}
    for name in DOORS:
        with pytest.raises((ValueError, TypeError)) as caught:
            door(name, Rows(*WRONG[kind]))
        refusals.setdefault((type(caught.value), str(caught.value)), []).append(name)
    assert len(refusals) == 1, refusals


def test_metrics_read_images_by_the_same_rule():
    for image in IMAGES.values():
        rows = extract_features([image, image], pixel_features(16))
        values = read_pixels(image).values
        torch.testing.assert_close(rows[0].view_as(values), values)
    for image in (torch.rand(3, 16, 16) * 255, torch.rand(4, 16, 16)):
        with pytest.raises(ValueError) as expected:
            read_pixels(image)
        with pytest.raises(ValueError) as caught:
            extract_features([image, image], pixel_features(16))
        assert str(caught.value) == str(expected.value)
