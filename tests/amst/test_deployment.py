"""The wrapper under torch.compile, DistributedDataParallel, torch.export and ONNX."""

import copy

import pytest
import torch
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision import models

from dreamda_aug.amst import AMSTWrapper

CLASSES = 4


def same(images):
    return images


def darker(images):
    return images * 0.5


def small(norm=True):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES),
    )  # fmt: skip


def wrapped(norm=True):
    return AMSTWrapper(small(norm), weak=same, strong=darker, consistency_threshold=0.0)


def batch(count=4):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % CLASSES


def gradients(module):
    """Per parameter; zeros where there is none (a compiled graph hands out zeros itself)."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in module.named_parameters()
    }


# --- torch.compile -----------------------------------------------------------------------------


def test_the_compiled_main_path_is_one_graph_and_answers_the_same():
    wrapper = wrapped().eval()
    images, _ = batch()
    compiled = torch.compile(wrapper, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), wrapper.model(images))


@pytest.mark.parametrize("in_place", [True, False])
def test_training_through_compiled_modules_gives_the_same_gradients(in_place):
    plain, wrapper = wrapped(), wrapped()
    wrapper.load_state_dict(plain.state_dict())
    images, targets = batch()
    if in_place:
        wrapper.model.compile(backend="aot_eager")
        call = wrapper
    else:
        call = torch.compile(wrapper, backend="aot_eager")
    torch.testing.assert_close(call(images), plain(images))  # the plain path is compiled first
    for stage, arguments in (("pretraining", ()), ("training", (images,))):
        for module, function in ((plain, plain), (wrapper, call)):
            module.zero_grad()
            loss = function(images, targets, *arguments, stage=stage)
            (loss if stage == "pretraining" else loss.total).backward()
        found = gradients(wrapper)
        for name, expected in gradients(plain).items():
            torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-4)
    labels = wrapper.label(images)
    torch.testing.assert_close(labels.confidence, plain.label(images).confidence)


# --- DistributedDataParallel -------------------------------------------------------------------


def train_on_two(rank, port_file, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{port_file}", rank=rank, world_size=2
    )
    wrapper = wrapped(norm=False)
    parallel = DistributedDataParallel(wrapper, find_unused_parameters=True)
    images, targets = batch(8)
    mine = slice(4 * rank, 4 * rank + 4)
    found = {}
    for stage, synthetic in (("pretraining", ()), ("training", (images[mine],))):
        wrapper.zero_grad()
        loss = parallel(images[mine], targets[mine], *synthetic, stage=stage)
        (loss if stage == "pretraining" else loss.total).backward()
        found[stage] = gradients(wrapper)
    found["answer"] = parallel(images).detach()
    torch.save(found, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(
        train_on_two, args=(str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2
    )
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    wrapper = wrapped(norm=False)
    images, targets = batch(8)
    assert torch.equal(one["answer"], wrapper.model(images))
    for stage, synthetic in (("pretraining", ()), ("training", (images,))):
        wrapper.zero_grad()
        loss = wrapper(images, targets, *synthetic, stage=stage)
        (loss if stage == "pretraining" else loss.total).backward()
        for name, expected in gradients(wrapper).items():
            assert torch.equal(one[stage][name], two[stage][name])
            torch.testing.assert_close(one[stage][name], expected, atol=1e-5, rtol=1e-4)


# --- export ------------------------------------------------------------------------------------


def exportable():
    torch.manual_seed(0)
    return {
        "resnet18": (models.resnet18(num_classes=CLASSES), 32),
        "squeezenet": (models.squeezenet1_1(num_classes=CLASSES), 32),
        "vit": (models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=CLASSES), 32),
        "googlenet": (models.googlenet(num_classes=CLASSES, init_weights=False), 64),
    }


@pytest.mark.parametrize("name", ["resnet18", "squeezenet", "vit", "googlenet"])
def test_the_main_path_exports_without_the_auxiliary_heads(name):
    model, side = exportable()[name]
    wrapper = AMSTWrapper(model).eval()
    images = torch.rand(2, 3, side, side)
    program = torch.export.export(wrapper, (images,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images))
    unused = [node for node in program.graph.nodes if "auxiliary_heads" in node.name]
    assert len(unused) == 8 and not any(node.users for node in unused)
    trained = copy.deepcopy(wrapper).train()
    trained.losses(images, torch.tensor([0, 1]), images).total.backward()
    torch.export.export(trained.eval(), (images,))


@pytest.mark.parametrize("name", ["resnet18", "squeezenet"])
def test_the_main_path_exports_to_onnx(name, tmp_path):
    pytest.importorskip("onnxscript", reason="the ONNX exporter needs onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needed to run the exported file")
    model, side = exportable()[name]
    wrapper = AMSTWrapper(model).eval()
    images = torch.rand(2, 3, side, side)
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(wrapper, (images,), path, dynamo=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(images), atol=1e-4, rtol=1e-4)
