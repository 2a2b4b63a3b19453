"""Time, memory, and the count of floating-point operations."""


import torch
from pipelines import pixel_pipeline
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common.measurement import count_flops
from dreamda_aug.models.unet import UNetModel


def test_flops_of_encoder_and_decoder_add_up_to_a_whole_call():
    model = UNetModel(pixel_pipeline())
    encoder, decoder = count_flops(model)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.unet(torch.zeros(3, 1, 16, 16), 0)
    assert 3 * (encoder + decoder) == counter.get_total_flops()
    assert 0 < encoder < decoder
