"""Compiled, channels-last, and guarded paths agree with the plain one."""

import copy
import logging

import pytest
import torch
from conftest import pixel_pipeline
from torch.utils._python_dispatch import TorchDispatchMode

from dreamda_aug import DDIMInversion, Generator, LatentCache, load_backbone
from dreamda_aug.backbones.unet import PixelBackbone
from dreamda_aug.generator import Request


def run(backbone, **settings):
    torch.manual_seed(0)
    x = torch.rand(3, backbone.channels, *backbone.image_size)
    condition = "a cat" if backbone.condition_kind == "text" else None
    generator = Generator(backbone, "paper", **{"steps": 4, "noise_scale": 1.0, **settings})
    requests = [Request(i, condition, r) for i in range(3) for r in range(2)]
    return generator.augment(x, requests), generator


def test_the_compiled_unet_keeps_its_tap_and_compiles_once_per_shape(sd_pipeline):
    plain, _ = run(load_backbone(copy.deepcopy(sd_pipeline)))
    compiled = load_backbone(copy.deepcopy(sd_pipeline))
    torch._dynamo.reset()
    # inductor's C++ compiler takes minutes here; what it would compile is captured all the same
    made, generator = run(compiled, compile={"backend": "eager"}, batch_size=4)
    torch.testing.assert_close(made, plain, atol=2e-4, rtol=0)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    generator.augment(torch.rand(1, 3, 16, 16), [Request(0, "a cat")])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_chunked_decoding_agrees(sd_pipeline):
    backbone = load_backbone(sd_pipeline)
    latents = torch.randn(5, 4, 8, 8)
    whole = backbone.decode(latents)
    backbone.decode_batch = 2
    torch.testing.assert_close(backbone.decode(latents), whole, atol=1e-5, rtol=0)


def test_guidance_on_part_of_the_run_saves_its_rows(sd_pipeline):
    backbone = load_backbone(copy.deepcopy(sd_pipeline))
    settings = dict(steps=10, strength=1.0, update_rule="symmetric", batch_size=1)
    full, _ = run(backbone, **settings)
    rows = backbone.tap.encoder_rows
    part, _ = run(backbone, guidance_interval=(0.2, 0.5), **settings)
    spent = backbone.tap.encoder_rows - rows
    assert rows == 3 * 10 + 6 * 20 and spent == 3 * 10 + 6 * (10 + 3)
    assert not torch.allclose(full, part)
    same, _ = run(backbone, guidance_interval=(0.0, 1.0), **settings)
    assert torch.equal(full, same)
    with pytest.raises(ValueError, match=r"guidance_interval must rise within \[0, 1\]"):
        run(backbone, guidance_interval=(0.5, 0.2))


class Waits(TorchDispatchMode):
    """Counts what makes the CPU wait for a GPU, or copy to it: between two calls of the U-Net.

    ``item()``, ``bool()`` and ``tolist()`` read a number; masks are looked up with ``nonzero``;
    ``torch.tensor`` makes a tensor on the CPU first.
    """

    NAMES = ("_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero", "equal")

    def __init__(self):
        super().__init__()
        self.calls, self.found, self._recent = 0, [], []

    def unet_is_called(self):
        if self.calls:  # before the first call, the batch is prepared
            self.found += self._recent
        self.calls, self._recent = self.calls + 1, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name.startswith(self.NAMES):
            self._recent.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("settings", [
    {}, {"update_rule": "symmetric"}, {"guidance_interval": (0.3, 0.7)}, {"adherence": 0.8},
    {"inversion": DDIMInversion(), "eta": 0.0},
])
@pytest.mark.parametrize("kind", ["pixel", "text"])
def test_no_step_waits_for_the_gpu(kind, settings, sd_pipeline, monkeypatch):
    pipeline = pixel_pipeline("sample") if kind == "pixel" else copy.deepcopy(sd_pipeline)
    backbone, waits = load_backbone(pipeline), Waits()
    predict = backbone.predict
    monkeypatch.setattr(backbone, "predict",
                        lambda *args: waits.unet_is_called() or predict(*args))
    generator = Generator(backbone, "paper", steps=5, **settings)
    condition = "a cat" if kind == "text" else None
    trajectories = [t for t in generator.invert(torch.rand(
        2, backbone.channels, *backbone.image_size)) for _ in range(2)]
    waits.calls = 0
    with waits:
        generator.generate(trajectories, [condition] * 4)
        assert (waits.calls, waits.found) == (4, [])
        waits.calls = 0
        generator.invert(torch.rand(2, backbone.channels, *backbone.image_size))
        assert waits.calls >= (4 if generator.settings.adherence else 0) and not waits.found


def break_half_precision(backbone, monkeypatch):
    """Make the U-Net give NaN unless it runs in float32."""
    predict = backbone.predict

    def broken(x_t, t, condition):
        output = predict(x_t, t, condition)
        return output if backbone.dtype == torch.float32 else output * float("nan")

    monkeypatch.setattr(backbone, "predict", broken)


def test_broken_samples_are_made_again_in_float32(monkeypatch, caplog):
    backbone = PixelBackbone(pixel_pipeline())
    x = torch.rand(2, 1, 16, 16)
    stored = Generator(backbone, "paper", steps=4).invert(x)
    backbone.unet.to(torch.bfloat16)
    break_half_precision(backbone, monkeypatch)
    generator = Generator(backbone, "paper", steps=4)
    monkeypatch.setattr(generator, "_invert", lambda *args: stored)
    events = []
    with caplog.at_level(logging.WARNING):
        made = generator.augment(x, [Request(0), Request(1)], events=events)
    assert made.isfinite().all() and "once more in float32" in caplog.text
    assert events == ["retried", "retried"] and generator.events == {"retried": 2}
    assert backbone.unet.dtype == torch.bfloat16


def test_samples_that_stay_broken_are_replaced_by_the_seed_image(monkeypatch, tmp_path):
    backbone = PixelBackbone(pixel_pipeline())
    x = torch.rand(2, 1, 16, 16)
    cache = LatentCache(tmp_path)
    Generator(backbone, "paper", steps=4, cache=cache).invert(x)
    backbone.unet.conv_out.bias.data[:] = float("nan")
    del backbone.fingerprint
    generator = Generator(backbone, "paper", steps=4, cache=cache)
    events = []
    made = generator.augment(x, [Request(0), Request(1)], events=events)
    assert torch.equal(made, x) and events == ["replaced", "replaced"]


def test_black_images_count_as_broken_unless_the_seed_is_black(monkeypatch):
    backbone = PixelBackbone(pixel_pipeline())
    monkeypatch.setattr(backbone, "decode", lambda latents: torch.zeros_like(latents))
    x = torch.stack([torch.rand(1, 16, 16), torch.zeros(1, 16, 16)])
    events = []
    made = Generator(backbone, "paper", steps=4).augment(x, [Request(0), Request(1)],
                                                         events=events)
    assert events == ["replaced", ""] and torch.equal(made[0], x[0])


def test_the_safety_checker_is_heard(sd_pipeline, monkeypatch):
    backbone = load_backbone(copy.deepcopy(sd_pipeline))
    backbone.pipeline.safety_checker = object()
    monkeypatch.setattr(backbone.pipeline, "run_safety_checker",
                        lambda images, device, dtype: (images, [False, True]))
    x = torch.rand(2, 3, 16, 16)
    generator = Generator(backbone, "paper", steps=4)
    made = generator.augment(x, [Request(0, "a"), Request(1, "a")])
    assert torch.equal(made[1], x[1]) and not torch.equal(made[0], x[0])
    assert generator.events == {"unsafe": 1}
