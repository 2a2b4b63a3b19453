"""Memory that adapting Stable Diffusion 1.5 takes, computed from shapes; no GPU, no weights.

    python -m benchmarks.speed.adaptation_memory

The U-Net is made of torch's fake tensors, which have shapes and no numbers. Every tensor's storage
is counted while it is alive: frozen weights in half precision, LoRA in float32, fused attention.
What a GPU needs beside that (its context, workspaces of convolutions, fragments) is not in it.
"""

import weakref

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dreamda_aug.adaptation.lora import add_lora

GIB, HALF = 2**30, torch.float16
# SD 1.5's U-Net; what is not named here is diffusers' default.
SD_15 = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
# A LoRA parameter in float32, its gradient and AdamW's two running means.
BYTES_PER_TRAINED_PARAMETER = 16


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that were made within it and are alive."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes()
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._drop, storage._cdata)
        return out

    def _drop(self, key):
        self.live -= self._sizes.pop(key)


def peak_of_a_step(batch_size, gradient_checkpointing, rank=8):
    """Bytes of weights, of what is trained, and of the activations at their peak."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD_15)
    unet.eval().requires_grad_(False)
    weights = sum(p.numel() * HALF.itemsize for p in unet.parameters())
    count = sum(p.numel() for p in add_lora(unet, rank, rng_seed=0).values())
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    with FakeTensorMode():
        for module in unet.modules():
            for name, p in module.named_parameters(recurse=False):
                dtype = torch.float32 if p.requires_grad else HALF
                fake = nn.Parameter(torch.empty(p.shape, dtype=dtype), p.requires_grad)
                module.register_parameter(name, fake)
        latents = torch.empty(batch_size, 4, 64, 64, dtype=HALF)
        text = torch.empty(batch_size, 77, 768, dtype=HALF)
        timesteps = torch.ones(batch_size, dtype=torch.int64)
        with LiveBytes() as alive:
            output = unet(latents, timesteps, text, return_dict=False)[0]
            output.float().square().mean().backward()
    return weights, count * BYTES_PER_TRAINED_PARAMETER, alive.peak


def main():
    print("images  U-Net  LoRA and AdamW  activations  with checkpointing   GiB")
    for batch_size in (1, 2, 4):
        weights, trained, plain = peak_of_a_step(batch_size, False)
        _, _, checkpointed = peak_of_a_step(batch_size, True)
        print(f"{batch_size:6d}  {weights / GIB:5.1f}  {trained / GIB:14.1f}  {plain / GIB:11.1f}  "
              f"{checkpointed / GIB:18.1f}", flush=True)


if __name__ == "__main__":
    main()
