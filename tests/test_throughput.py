"""The throughput benchmark: what it compares with, what it counts, and what it writes."""

import copy
import json
from unittest.mock import patch

import pytest
import torch
from architectures import ARCHITECTURES, build, random_pipeline
from conftest import pixel_pipeline
from measurement import count_flops
from plain import PlainRows, plain_loop
from switches import COMPILE, SWITCHES, Bench, compare
from throughput import main, seeds_of

from dreamda_aug import BottleneckNoise, Generator, Settings, load_backbone
from dreamda_aug.backbones.unet import PixelBackbone
from dreamda_aug.generator import Request


def test_sd15_has_the_published_number_of_weights():
    pipeline = random_pipeline(**ARCHITECTURES["sd15"], device="meta")
    count = {name: sum(p.numel() for p in getattr(pipeline, name).parameters())
             for name in ("unet", "vae")}
    assert count == {"unet": 859_520_964, "vae": 83_653_863}


def test_tiny_sd_has_the_same_blocks():
    def layers(arch):
        pipeline = random_pipeline(**ARCHITECTURES[arch], device="meta")
        return [type(m).__name__ for part in (pipeline.unet, pipeline.vae) for m in part.modules()]

    assert layers("tiny-sd") == layers("sd15")
    backbone = build("tiny-sd", "cpu")
    assert backbone.image_size == (128, 128)
    assert torch.equal(*(backbone.embed(["a"])["encoder_hidden_states"] for _ in range(2)))


@pytest.mark.parametrize("kind", ["pixel", "text"])
def test_the_plain_loop_makes_the_images_that_exact_mode_makes(kind, sd_pipeline):
    backbone = (load_backbone(copy.deepcopy(sd_pipeline)) if kind == "text"
                else PixelBackbone(pixel_pipeline()))
    generator = Generator(backbone, "official", steps=5, noise_scale=1.0,
                          perturbation=BottleneckNoise())
    x = torch.rand(2, backbone.channels, *backbone.image_size)
    told = "a cat" if kind == "text" else None
    requests = [Request(i, told, r) for i in range(2) for r in range(2)]
    with torch.no_grad():
        plain = torch.cat([
            plain_loop(generator, x[r.image][None], 4 if told else 2, told,
                       *seeds_of(generator, x[r.image], r)) for r in requests])
    assert (plain[0] - plain[1]).abs().max() > 1e-2
    with patch("dreamda_aug.generator.STORAGE_DTYPE", torch.float32):
        torch.testing.assert_close(generator.augment(x, requests), plain, atol=5e-4, rtol=0)


def test_plain_rows_run_the_encoder_for_every_decoder_row():
    backbone = PixelBackbone(pixel_pipeline())
    x, tap = torch.rand(1, 1, 16, 16), backbone.tap
    requests = [Request(0, None, r) for r in range(2)]

    def rows(what):
        before = tap.encoder_rows, tap.decoder_rows
        Generator(what, "paper", steps=4).augment(x, requests)
        return tap.encoder_rows - before[0], tap.decoder_rows - before[1]

    # 3 steps of inversion; then a clean row and a perturbed one for each of two replicas
    assert rows(PlainRows(backbone)) == (3 + 1 + 2 + 2 * 4, 3 + 1 + 2 + 2 * 4)
    assert rows(backbone) == (3 + 1 + 2 * 2, 3 + 1 + 2 + 2 * 4)


def test_flops_of_encoder_and_decoder_add_up_to_a_whole_call():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    backbone = PixelBackbone(pixel_pipeline())
    encoder, decoder = count_flops(backbone)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        backbone.unet(torch.zeros(3, 1, 16, 16), 0)
    assert 3 * (encoder + decoder) == counter.get_total_flops()
    assert 0 < encoder < decoder


def test_every_switch_runs_on_a_pixel_model_and_is_set_back():
    backbone = PixelBackbone(pixel_pipeline())
    twin = copy.copy(backbone)
    twin.compile(backend="eager")
    settings = Settings(steps=3, update_rule="symmetric")
    bench = Bench(backbone, settings, batch_size=2, replicas=2, repeats=1, compiled=twin)
    before = bench.run(bench.generator())
    rows = {switch.name: compare(bench, switch) for switch in [*SWITCHES, COMPILE]}
    skipped = [name for name, row in rows.items() if "skipped" in row]
    assert [name[:7] for name in skipped] == ["chunked", "no host", "pinned ", "guidanc"]
    assert torch.equal(bench.run(bench.generator()), before)
    for name, row in rows.items():
        if name not in skipped:
            limit = 1.0 if name.startswith("a quarter") else 1e-3
            assert 0 < row["ratio"] and row["max_difference"] <= limit


def test_the_benchmark_writes_a_row_for_each_path_and_switch(sd_pipeline, tmp_path, capsys):
    sd_pipeline.save_pretrained(tmp_path / "model")
    record = main(["--arch", str(tmp_path / "model"), "--quick", "--steps", "3", "--device", "cpu",
                   "--no-compile", "--out", str(tmp_path / "results")])
    assert record == json.loads((tmp_path / "results" / "throughput_model.json").read_text())
    plain, one, four, *_ = record["paths"]
    assert (plain["encoder_rows"], one["batch_size"], four["batch_size"]) == (8, 1, 4)
    # 2 steps: an inversion for every 3 replicas, 2 guided rows for each of them
    assert one["encoder_rows"] == 2 / 3 + 4
    assert one["max_difference_in_float32"] < 1e-3
    exact = [s for s in record["switches"] if "max_difference" in s][:6]
    assert all(s["max_difference"] < 2e-2 for s in exact)
    page = (tmp_path / "throughput.md").read_text()
    for switch in [*SWITCHES, COMPILE]:
        assert f"| {switch.name} | {switch.instead} |" in page
    assert page.count("GPU only, not measured yet") == 2 and "prove nothing" in page
    main(["--arch", str(tmp_path / "model"), "--quick", "--steps", "3", "--device", "cpu",
          "--low-memory", "--out", str(tmp_path / "results")])
    page = (tmp_path / "throughput.md").read_text()
    assert page.count("### Each switch by itself") == 1 and ", low memory" in page
