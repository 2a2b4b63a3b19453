import pickle

import pytest
import torch
from pipelines import pixel_pipeline
from torch import nn
from torch.utils.data import TensorDataset

from dreamda_aug import DreamDAugment
from dreamda_aug.expansion import LabelAgreement, expand, open_filter, read_manifest
from dreamda_aug.expansion.filters import Batch, OtherImageCopy, SeedCopy
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.models.unet import UNetModel


@pytest.fixture(scope="module")
def model():
    return UNetModel(pixel_pipeline())


@pytest.fixture
def images():
    return torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def batch_of(images, seed_images, labels=None):
    count = len(images)
    return Batch(images, seed_images, range(count), labels or [0] * count, [[]] * count)


def test_the_copy_filter_finds_copies_of_other_images_and_not_of_the_seed(images, model):
    training = torch.cat([images, images[:1] + 1e-3]).clamp(0, 1)  # image 6 is a twin of image 0
    source = open_seed_images(TensorDataset(training, torch.zeros(7, dtype=torch.int64)))
    check = OtherImageCopy(threshold=0.3)
    check.prepare(source, model)
    made = training.clone()
    made[2] = training[4]  # memorised
    made[3] = 0.9 * training[3] + 0.1 * training[5]  # close to its own seed image
    scores, flags = check.measure(batch_of(made, training))
    # 0 and 6 lie close to each other, because their seed images do
    assert flags == [False, False, True, False, False, False, False]
    assert scores[2] < 0.05 and scores[3] > 0.5
    with pytest.raises(ValueError, match="needs at least 2 readable seed images"):
        check.prepare(open_seed_images(TensorDataset(images[:1], torch.tensor([0]))), model)


def test_the_seed_copy_filter_finds_what_hardly_changed(images):
    made = images.clone()
    made[1] += 0.01
    made[2] = 1 - made[2]
    scores, flags = SeedCopy(0.02).measure(batch_of(made, images))
    assert flags == [True, True, False, True, True, True]
    assert scores[1] == pytest.approx(0.01, abs=1e-6)


def brightness(images):
    """Two classes, told apart by their mean."""
    mean = images.flatten(1).mean(1)
    return torch.stack([0.5 - mean, mean - 0.5], 1) * 20


def test_the_label_filter_asks_the_classifier(images):
    images = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    check = LabelAgreement(brightness, "brightness")
    scores, flags = check.measure(batch_of(images, images, [0, 0]))
    assert flags == [False, True] and scores[0] > 0.99 and scores[1] < 0.01
    with pytest.raises(ValueError, match="must give finite logits .* K > 2, .* got \\(2, 2\\)"):
        check.measure(batch_of(images, images, [0, 2]))
    with pytest.raises(ValueError, match="at least two, got 1"):
        LabelAgreement(lambda x: brightness(x)[:, :1], "").measure(batch_of(images, images, [0, 0]))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(x.flatten(1))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_classifiers_open_from_torchscript_and_onnx_files(tmp_path):
    net, x = Net().eval(), torch.rand(3, 1, 4, 4)
    torch.jit.trace(net, x).save(tmp_path / "net.pt")
    opened = [open_filter(f"label={tmp_path / 'net.pt'}")]
    if pytest.importorskip("onnxruntime", reason="ONNX is optional"):
        write_onnx(net, tmp_path / "net.onnx")
        opened.append(open_filter(f"label={tmp_path / 'net.onnx'}"))
    for each in opened:
        again = pickle.loads(pickle.dumps(each))  # as for the processes of an engine
        assert again.measure(batch_of(x, x, [0, 1, 0])) == each.measure(batch_of(x, x, [0, 1, 0]))
        scores, _ = each.measure(batch_of(x, x, [0, 1, 0]))
        expected = net(x).softmax(1)[range(3), [0, 1, 0]]
        assert scores == pytest.approx(expected.tolist(), abs=1e-5)
        assert len(each.describe()["classifier"]) == 64


def write_onnx(net, path):
    onnx = pytest.importorskip("onnx", reason="ONNX is optional")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = [onnx.numpy_helper.from_array(p.detach().numpy(), n)
               for n, p in net.head.named_parameters()]
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]),
         helper.make_node("Gemm", ["flat", "weight", "bias"], ["y"], transB=1)],
        "net", [helper.make_tensor_value_info("x", kind, ["B", 1, 4, 4])],
        [helper.make_tensor_value_info("y", kind, ["B", 2])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


@pytest.mark.parametrize("text, error, message", [
    ("sharpness", ValueError, "filter must be guard, copy, seed-copy or label=CLASSIFIER"),
    ("copy=", ValueError, "threshold must be a number >= 0, got ''"),
    ("seed-copy=nan", ValueError, "threshold must be a number >= 0"),
    ("label=none.pt", FileNotFoundError, "none.pt: expected a regular"),
])
def test_a_bad_filter_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        open_filter(text)


def test_flagged_images_are_left_out_and_counted_or_kept_and_marked(images, model, tmp_path):
    data = TensorDataset(images, torch.tensor([0, 1] * 3))
    augment = DreamDAugment(model, "paper", steps=2, noise_scale=0.5, cache=None, batch_size=4)
    filters = [SeedCopy(0.9), LabelAgreement(brightness, "brightness")]
    kept = expand(data, tmp_path / "kept", augment, 2, filters=filters, keep_flagged=True)
    lines = list(read_manifest(tmp_path / "kept"))
    assert kept.stats.made == 12 and kept.stats.flags["seed-copy"] == 12
    assert all("seed-copy" in line.flags and set(line.scores) == {"seed-copy", "label"}
               for line in lines)
    assert any("too weak" in w and "dreamda calibrate" in w for w in kept.warnings)
    labels = [line for line in lines if "label" in line.flags]
    left = expand(data, tmp_path / "left", augment, 2, filters=filters[1:])
    assert 0 < len(labels) < 12 and left.stats.made == 12 - len(labels)
    assert left.stats.dropped == {"label": len(labels)}
    assert f"Flagged and left out: label {len(labels)}." in (
        tmp_path / "left" / "README.md").read_text()
    # nothing is made again where everything was left out on purpose
    assert expand(data, tmp_path / "left", augment, 2, filters=filters[1:]).made == 0
