"""`regenerate` with models whose loading has settings of its own: the record holds them."""

import json
import shutil

import pytest
import torch
from expansion.folders import write_images
from pipelines import pixel_pipeline
from torch.utils.data import TensorDataset

pytest.importorskip("transformers")

from diffusers import FluxPipeline

from benchmarks.families import pipelines
from dreamda_aug import Synthesizer
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion import expand
from dreamda_aug.expansion.manifest import read_manifest
from dreamda_aug.expansion.regeneration import regenerate
from dreamda_aug.models.unet import UNetModel

pytestmark = pytest.mark.filterwarnings("ignore:.*without a class")


def test_hook_and_embedded_guidance_are_on_record_and_used_again(tmp_path, monkeypatch):
    # FLUX as it is makes images of 128 latents a side
    monkeypatch.setattr(FluxPipeline, "default_sample_size", property(
        lambda self: 8, lambda self, value: None), raising=False)
    pipelines.PIPELINES["flux"]().save_pretrained(tmp_path / "model")
    train, out = write_images(tmp_path / "train", {"cat": 2, "dog": 1}), tmp_path / "out"

    def run(out, **options):
        return expand(train, out, Synthesizer(
            tmp_path / "model", "paper", steps=2, noise_scale=8.0, batch_size=4, cache=None,
            device="cpu", **options), 2)

    run(out, block_index=3, embedded_guidance=2.0)
    metadata = json.loads((out / "plan.json").read_text())
    assert metadata["block_index"] == 3 and metadata["embedded_guidance"] == 2.0
    assert "| block_index | 3 |" in (out / "README.md").read_text()
    lines = list(read_manifest(out))
    assert len(lines) == 6
    assert all(regenerate(out, line.id, device="cpu").equal for line in lines[::3])

    with pytest.raises(ExpansionError, match="begun with other settings.*embedded_guidance: "):
        run(out, block_index=3)
    run(tmp_path / "other", block_index=3)
    assert all(line.pixels != other.pixels for line, other in zip(
        lines, read_manifest(tmp_path / "other"), strict=True))


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
    for name in ("00000000_0000", "00000002_0001"):
        assert regenerate(tmp_path / "data", name, synthesizer=synthesizer, source=source).equal


def test_an_image_of_the_bundled_model_is_made_again_from_the_record_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("DREAMDA_CACHE", str(tmp_path / "cache"))
    synthesizer = Synthesizer("bundled", "paper", steps=4, cache=None, batch_size=8,
                              device="cpu")
    expand("bundled", tmp_path / "out", synthesizer, 3, limit=7)
    lines = list(read_manifest(tmp_path / "out"))
    for line in (lines[0], lines[7], lines[20]):
        assert regenerate(tmp_path / "out", line.id, device="cpu").equal
    assert not (tmp_path / "cache").exists()


def test_regenerate_refuses_another_model_seed_image_or_id(whole_train, synthesizer, tmp_path):
    mine = shutil.copytree(whole_train, tmp_path / "train")
    out = tmp_path / "out"
    expand(mine, out, synthesizer, 1)
    with pytest.raises(ExpansionError, match="has no image 'nothing'"):
        regenerate(out, "nothing", synthesizer=synthesizer)
    other = Synthesizer(UNetModel(pixel_pipeline(channels=3)), "paper", cache=None)
    with pytest.raises(ExpansionError, match="expected the model"):
        regenerate(out, "00000000_0000", synthesizer=other)
    shutil.copy(mine / "dog" / "0.png", mine / "cat" / "0.png")
    with pytest.raises(ExpansionError, match="the image was changed"):
        regenerate(out, "00000000_0000", synthesizer=synthesizer)
    (mine / "cat" / "0.png").unlink()
    with pytest.raises(ExpansionError, match="not in the source any more"):
        regenerate(out, "00000000_0000", synthesizer=synthesizer)
    with pytest.raises(FileNotFoundError, match="expected an expanded dataset, found none"):
        regenerate(tmp_path, "00000000_0000")


def test_a_dataset_object_can_be_expanded_and_equal_images_get_other_replicas(
    synthesizer, tmp_path
):
    images = torch.rand(3, 1, 16, 16)
    images[2] = images[0]
    data = TensorDataset(images, torch.tensor([0, 1, 0]))
    summary = expand(data, tmp_path / "out", synthesizer, 2)
    assert summary.stats.images == {"0": 4, "1": 2} and summary.stats.same_pixels == {}
    lines = list(read_manifest(tmp_path / "out"))
    assert [line.replica for line in lines] == [0, 1, 0, 1, 2, 3]
    assert len({line.pixels for line in lines}) == 6
    assert expand(data, tmp_path / "out", synthesizer, 2).made == 0
    assert regenerate(tmp_path / "out", lines[5].id, synthesizer=synthesizer, source=data).equal
    with pytest.raises(ExpansionError, match="made from a dataset object; pass source"):
        regenerate(tmp_path / "out", "00000000_0000", synthesizer=synthesizer)
