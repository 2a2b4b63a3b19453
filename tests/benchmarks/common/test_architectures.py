"""Models with random weights."""

import torch

from benchmarks.common.architectures import ARCHITECTURES, build, random_pipeline


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
    model = build("tiny-sd", "cpu")
    assert model.image_size == (128, 128)
    assert torch.equal(*(model.embed(["a"])["encoder_hidden_states"] for _ in range(2)))
