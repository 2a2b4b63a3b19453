"""SelfTraining over a wrapper that was distributed or compiled."""

import warnings

import pytest
import torch
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from dreamda_aug.amst import AMSTWrapper, CollapseWarning, RunPlan, SelfTraining, VotingRule
from dreamda_aug.amst.running import find_wrapper

CLASSES = 3


def blobs(count, seed):
    """Images whose brightest third tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = 0.3 + 0.1 * torch.rand(count, 1, 6, 6, generator=generator)
    for row, label in enumerate(labels.tolist()):
        images[row, :, 2 * label : 2 * label + 2] += 0.4
    return images, labels


def same(images):
    return images


def wrapped():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(16, CLASSES),
    )  # fmt: skip
    return AMSTWrapper(model, weak=same, strong=same, voting=VotingRule(confidence_threshold=0.5))


def distributed(wrapper):
    return DistributedDataParallel(wrapper, find_unused_parameters=True)


def make(outer=lambda wrapper: wrapper, **plan):
    wrapper = wrapped()
    optimizer = torch.optim.AdamW(wrapper.parameter_groups(0.03))
    plan = {"batch_size": 12, "steps_per_epoch": 6, "pretraining_epochs": 6, "epochs": 2} | plan
    return SelfTraining(
        outer(wrapper), TensorDataset(*blobs(6, seed=0)), TensorDataset(*blobs(30, seed=1)),
        optimizer, plan=RunPlan(**plan),
    )  # fmt: skip


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("plan", [{}, {"ema_decay": 0.5}, {"online": True}], ids=str)
def test_a_distributed_wrapper_in_one_process_trains_as_the_plain_one(one_process, plan):
    plain, parallel = make(**plan), make(distributed, **plan)
    passed = []
    parallel._processes.parallel.register_forward_pre_hook(
        lambda _, args, options: passed.append(options["stage"]), with_kwargs=True
    )
    assert plain.run() == parallel.run()
    assert passed == ["pretraining"] * 36 + ["training"] * 12, "each loss went through DDP"
    assert parallel.reports[-1].accepted > 0
    for name, value in plain.wrapper.state_dict().items():
        assert torch.equal(value, parallel.wrapper.state_dict()[name]), name


def test_checkpoints_fit_whether_the_wrapper_is_distributed_or_not(one_process, tmp_path):
    parallel, plain = make(distributed), make()
    parallel.train_epoch()
    parallel.save(tmp_path / "run.pt")
    plain.load(tmp_path / "run.pt")
    assert plain.epoch == 1
    assert isinstance(parallel.wrapper, AMSTWrapper)
    assert isinstance(parallel.wrapper.to_classifier(), nn.Sequential)


@pytest.mark.filterwarnings("ignore:You passed find_unused_parameters")
@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True, "static_graph": True}])
def test_a_distributed_wrapper_that_expects_all_heads_is_refused(one_process, options):
    message = r"leaves some heads out.*DistributedDataParallel\(wrapper, find_unused_parameters="
    with pytest.raises(ValueError, match=message):
        make(lambda wrapper: DistributedDataParallel(wrapper, **options))


def test_what_holds_no_wrapper_is_refused():
    with pytest.raises(TypeError, match="must be an AMSTWrapper, or one inside.* got Linear"):
        find_wrapper(nn.Linear(2, 2))


def test_a_compiled_wrapper_is_found_and_trained():
    training = make(
        lambda wrapper: torch.compile(wrapper, backend="eager"),
        steps_per_epoch=2, pretraining_epochs=1, epochs=1,
    )  # fmt: skip
    training.run()
    assert isinstance(training.wrapper, AMSTWrapper) and len(training.reports) == 1


def train_on_two(rank, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", CollapseWarning)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    training = make(distributed, steps_per_epoch=None, pretraining_epochs=18, ema_decay=0.5)
    batches = torch.cat([batch.real for batch in training.loader()])
    training.save = lambda path: torch.save(rank, f"{path}.{rank}")
    training.run(checkpoint=f"{folder}/run.pt")
    training._processes.share_buffers(training.wrapper)
    found = {
        "steps": training.steps_per_epoch, "batches": batches, "reports": training.reports,
        "labels": vars(training.pseudo_labels), "weights": training.wrapper.state_dict(),
    }  # fmt: skip
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_share_weights_and_labels_but_not_batches(tmp_path):
    torch.multiprocessing.spawn(train_on_two, args=(str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert not torch.equal(one["batches"], two["batches"])
    torch.testing.assert_close(one["weights"], two["weights"], atol=0, rtol=0)
    torch.testing.assert_close(one["labels"], two["labels"], atol=0, rtol=0)
    assert one["reports"] == two["reports"] and one["reports"][-1].accepted > 0
    assert one["steps"] == 2, "30 images, 8 per batch and process"
    assert sorted(path.name for path in tmp_path.glob("run.pt*")) == ["run.pt.0"]
