"""The wrapper under torch.compile, DistributedDataParallel, torch.export and ONNX."""

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


def wrapped(norm=True):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    return AMSTWrapper(model, weak=same, strong=darker, consistency_threshold=0.0)


def batch(count=4):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 1, 8, 8, generator=generator), torch.arange(count) % CLASSES


def gradients(module, call, images, targets):
    """Of both stages, by parameter; zeros where there is none."""
    found = {}
    for stage, synthetic in (("pretraining", ()), ("training", (images,))):
        module.zero_grad()
        loss = call(images, targets, *synthetic, stage=stage)
        (loss if stage == "pretraining" else loss.total).backward()
        found |= {f"{stage} {name}": torch.zeros_like(p) if p.grad is None else p.grad
                  for name, p in module.named_parameters()}
    return found


@pytest.mark.parametrize("in_place", [True, False])
def test_training_through_compiled_modules_gives_the_same_gradients(in_place):
    plain, wrapper = wrapped(), wrapped()
    images, targets = batch()
    call = wrapper if in_place else torch.compile(wrapper, backend="aot_eager")
    if in_place:
        wrapper.model.compile(backend="aot_eager")
    torch.testing.assert_close(call(images), plain(images))  # the plain path is compiled first
    found = gradients(wrapper, call, images, targets)
    for name, expected in gradients(plain, plain, images, targets).items():
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-4)
    main_path = torch.compile(wrapper.eval(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(main_path(images), plain.eval()(images))  # one graph


def train_on_two(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    wrapper = wrapped(norm=False)
    parallel = DistributedDataParallel(wrapper, find_unused_parameters=True)
    mine = [part[4 * rank : 4 * rank + 4] for part in batch(8)]
    torch.save(gradients(wrapper, parallel, *mine), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_gradients_of_one(tmp_path):
    torch.multiprocessing.spawn(train_on_two, args=(str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    wrapper = wrapped(norm=False)
    for name, expected in gradients(wrapper, wrapper, *batch(8)).items():
        assert torch.equal(one[name], two[name])
        torch.testing.assert_close(one[name], expected, atol=1e-5, rtol=1e-4)


def test_the_main_path_exports_without_the_auxiliary_heads():
    model = models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=CLASSES)
    images = torch.rand(2, 3, 32, 32)
    wrapper = AMSTWrapper(model).train()
    wrapper.losses(images, torch.tensor([0, 1]), images).total.backward()
    program = torch.export.export(wrapper.eval(), (images,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model(images))
    unused = [node for node in program.graph.nodes if "auxiliary_heads" in node.name]
    assert len(unused) == 8 and not any(node.users for node in unused)
