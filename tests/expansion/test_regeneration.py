"""`regenerate` with models whose loading has settings of its own: the record holds them."""

import json

import pytest
from expansion.folders import content, write_images

pytest.importorskip("transformers")

from diffusers import FluxPipeline

from benchmarks.families import pipelines
from dreamda_aug import ModelSpec, Synthesizer
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion import expand
from dreamda_aug.expansion.manifest import read_manifest
from dreamda_aug.expansion.regeneration import regenerate

pytestmark = pytest.mark.filterwarnings("ignore:.*without a class")


@pytest.mark.parametrize("name, options, others", [
    ("dit", {"block_index": 1}, {}),
    ("flux", {"block_index": 3, "embedded_guidance": 2.0}, {"block_index": 3}),
])
def test_hook_and_embedded_guidance_are_on_record_and_used_again(
    name, options, others, tmp_path, monkeypatch
):
    # FLUX as it is makes images of 128 latents a side
    monkeypatch.setattr(FluxPipeline, "default_sample_size", property(
        lambda self: 8, lambda self, value: None), raising=False)
    pipelines.PIPELINES[name]().save_pretrained(tmp_path / "model")
    train, out = write_images(tmp_path / "train", {"cat": 2, "dog": 1}), tmp_path / "out"

    def run(out, **options):
        return expand(train, out, Synthesizer(
            tmp_path / "model", "paper", steps=2, noise_scale=8.0, batch_size=4, cache=None,
            device="cpu", **options), 2)

    run(out, **options)
    facts = json.loads((out / "plan.json").read_text())
    assert facts["block_index"] == options["block_index"]
    assert facts["embedded_guidance"] == options.get("embedded_guidance")
    assert f"| block_index | {options['block_index']} |" in (out / "dataset_card.md").read_text()
    lines = list(read_manifest(out))
    assert len(lines) == 6
    assert all(regenerate(out, line.id, device="cpu").equal for line in lines[::3])

    before = content(out)
    assert run(out, **options).made == 0 and content(out) == before
    changed = [key for key in options if key not in others]
    with pytest.raises(ExpansionError, match=f"begun with other settings.*{changed[0]}: "):
        run(out, **others)
    assert content(out) == before
    run(tmp_path / "other", **others)
    assert all(line.pixels != other.pixels for line, other in zip(
        lines, read_manifest(tmp_path / "other"), strict=True))


def test_another_image_size_is_refused_and_the_recorded_one_used_again(tmp_path):
    pipelines.PIPELINES["dit"]().save_pretrained(tmp_path / "model")
    train, out = write_images(tmp_path / "train", {"cat": 1, "dog": 1}), tmp_path / "out"

    def run(image_size):
        spec = ModelSpec(tmp_path / "model", "cpu", image_size=image_size)
        return expand(train, out, Synthesizer(spec, "paper", steps=2, cache=None), 1)

    native = ModelSpec(tmp_path / "model", "cpu").load().image_size
    half = (native[0] // 2, native[1] // 2)
    run(half)
    assert regenerate(out, next(read_manifest(out)).id, device="cpu").equal
    with pytest.raises(ExpansionError, match="begun with other settings.*image_size: "):
        run(None)
