"""The plain loop and the plain rows that the fast paths are compared with."""

import copy
from unittest.mock import patch

import pytest
import torch
from pipelines import pixel_pipeline

from benchmarks.common.plain import plain_loop, plain_rows
from benchmarks.speed.bench import seeds_of
from dreamda_aug import BottleneckNoise, load_backbone
from dreamda_aug.backbones import is_backbone
from dreamda_aug.backbones.unet import PixelBackbone
from dreamda_aug.generation.tensors import Request, TensorSynthesizer


@pytest.mark.parametrize("kind", ["pixel", "text"])
def test_the_plain_loop_makes_the_images_that_exact_mode_makes(kind, sd_pipeline):
    backbone = (load_backbone(copy.deepcopy(sd_pipeline)) if kind == "text"
                else PixelBackbone(pixel_pipeline()))
    synthesizer = TensorSynthesizer(backbone, "official", steps=5, noise_scale=1.0,
                                    perturbation=BottleneckNoise())
    x = torch.rand(2, backbone.channels, *backbone.image_size)
    condition = "a cat" if kind == "text" else None
    requests = [Request(i, condition, r) for i in range(2) for r in range(2)]
    with torch.no_grad():
        plain = torch.cat([
            plain_loop(synthesizer, x[r.image][None], 4 if condition else 2, condition,
                       *seeds_of(synthesizer, x[r.image], r)) for r in requests])
    assert (plain[0] - plain[1]).abs().max() > 1e-2
    with patch("dreamda_aug.generation.tensors.STORAGE_DTYPE", torch.float32):
        made = synthesizer.synthesize(x, requests).images
    torch.testing.assert_close(made, plain, atol=5e-4, rtol=0)


def test_plain_rows_run_the_encoder_for_every_decoder_row():
    backbone = PixelBackbone(pixel_pipeline())
    assert is_backbone(plain_rows(backbone))
    x, tap = torch.rand(1, 1, 16, 16), backbone.tap
    requests = [Request(0, None, r) for r in range(2)]

    def rows(what):
        before = tap.encoder_rows, tap.decoder_rows
        TensorSynthesizer(what, "paper", steps=4).synthesize(x, requests)
        return tap.encoder_rows - before[0], tap.decoder_rows - before[1]

    # 3 steps of inversion; then a clean row and a perturbed one for each of two replicas
    assert rows(plain_rows(backbone)) == (3 + 1 + 2 + 2 * 4, 3 + 1 + 2 + 2 * 4)
    assert rows(backbone) == (3 + 1 + 2 * 2, 3 + 1 + 2 + 2 * 4)
