"""Expansions with a compiled model; the compiler that does nothing stands for the real one."""

import json

import torch
from pipelines import pixel_pipeline
from torch.utils.data import TensorDataset

from dreamda_aug import Synthesizer, expand
from dreamda_aug.expansion.regeneration import regenerate
from dreamda_aug.inputs.seed_images import open_seed_images


def test_a_compiled_model_sees_batches_of_one_shape_and_is_on_record(tmp_path):
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    source = TensorDataset(images, torch.tensor([0, 1, 0]))
    shapes = set()

    def compiler(graph, inputs):
        shapes.update(len(each) for each in inputs if each.ndim == 4 and each.shape[-1] == 16)
        return graph

    torch._dynamo.reset()
    synthesizer = Synthesizer(
        pixel_pipeline(), "paper", steps=3, noise_scale=1.0, replay=0.5, batch_size=4,
        cache=None, compile={"backend": compiler})
    expand(source, tmp_path / "data", synthesizer, 2)
    # six samples are a batch of four and one of two, padded; inversions run one by one
    assert shapes <= {1, 4} and 4 in shapes
    assert json.loads((tmp_path / "data" / "plan.json").read_text())["compile"] is True
    lines = [json.loads(line) for line in
             (tmp_path / "data" / "manifest.jsonl").read_text().splitlines()]
    for line in (lines[0], lines[-1]):
        assert regenerate(tmp_path / "data", line["id"], synthesizer=synthesizer,
                          source=open_seed_images(source)).equal
