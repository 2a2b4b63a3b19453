"""What is done about samples that come out broken, black or unsafe."""

import torch
from pipelines import sampler

from dreamda_aug.generation.guards import guard
from dreamda_aug.generation.sampler import Request


def test_black_images_count_as_broken_unless_the_seed_is_black(pixel, monkeypatch):
    monkeypatch.setattr(pixel, "decode", lambda latents: torch.zeros_like(latents))
    x = torch.stack([torch.rand(1, 16, 16), torch.zeros(1, 16, 16)])
    made, events, _ = sampler(pixel, steps=4).synthesize(x, [Request(0), Request(1)])
    assert events == ["replaced", ""] and torch.equal(made[0], x[0])


def test_the_safety_checker_is_heard(text, monkeypatch):
    text.pipeline.safety_checker = object()
    monkeypatch.setattr(text.pipeline, "run_safety_checker",
                        lambda images, device, dtype: (images, [False, True]))
    x = torch.rand(2, 3, 16, 16)
    generator = sampler(text, steps=4)
    made = generator.synthesize(x, [Request(0, "a"), Request(1, "a")]).images
    assert torch.equal(made[1], x[1]) and not torch.equal(made[0], x[0])
    assert generator.watch.events == {"unsafe": 1}


def test_only_broken_rows_are_made_again_and_what_comes_out_whole_is_kept(pixel):
    pixel.unet.to(torch.bfloat16)
    made, seeds, asked = torch.rand(4, 1, 16, 16), torch.rand(4, 1, 16, 16), []
    made[1, 0, 3, 3], made[3] = float("inf"), float("nan")
    kept, whole = made.clone(), torch.full((1, 1, 16, 16), 0.5)

    def redo(rows):
        asked.append((rows, pixel.dtype))
        return torch.cat([whole, torch.full_like(whole, float("nan"))])

    assert guard(made, seeds, pixel, redo) == ["", "retried", "", "replaced"]
    assert asked == [([1, 3], torch.float32)] and pixel.dtype == torch.bfloat16
    assert torch.equal(made, torch.stack([kept[0], whole[0], kept[2], seeds[3]]))
