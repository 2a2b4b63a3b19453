"""Time, memory, and the count of floating-point operations."""

import subprocess
import sys
from pathlib import Path

import torch
from pipelines import pixel_pipeline
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common.measurement import count_flops
from dreamda_aug.models.unet import PixelModel

ROOT = Path(__file__).parents[3]


def test_flops_of_encoder_and_decoder_add_up_to_a_whole_call():
    model = PixelModel(pixel_pipeline())
    encoder, decoder = count_flops(model)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.unet(torch.zeros(3, 1, 16, 16), 0)
    assert 3 * (encoder + decoder) == counter.get_total_flops()
    assert 0 < encoder < decoder


def test_the_peak_of_a_call_holds_what_it_allocated():
    # in a process of its own: one that has run other tests has room left from them
    code = """
import torch
from benchmarks.common.measurement import measure

def allocate():
    return len(torch.ones(64 * 2**20, dtype=torch.uint8))

small = measure(lambda: None, torch.device("cpu"))
large = measure(allocate, torch.device("cpu"))
assert large.result == 64 * 2**20 and large.seconds > 0
assert large.peak_bytes > small.peak_bytes + 50 * 2**20, (small, large)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
