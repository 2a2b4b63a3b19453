"""A single .safetensors checkpoint in the layout of the original Stable Diffusion code."""

import copy
import re

import pytest
import torch
from safetensors.torch import save_file

from dreamda_aug import load_model
from dreamda_aug.generation.tensors import Request, TensorSynthesizer

UNET_PARTS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}
RESNET_PARTS = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}
VAE_PARTS = {
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "group_norm": "norm",
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "downsamplers.0": "downsample", "upsamplers.0": "upsample",
}


def original_unet(name: str, layers: int, with_attention: set[int]) -> str:
    """Input and output blocks are counted through all levels, as the original U-Net lists them."""
    for ours, theirs in UNET_PARTS.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    kind, block, part, index, rest = re.fullmatch(
        r"(down|mid|up)_blocks?\.?(\d*)\.(\w+)\.(\d+)\.(.*)", name).groups()
    if part == "resnets":
        first, _, leaf = rest.partition(".")
        rest = f"{RESNET_PARTS[first]}.{leaf}"
    if kind == "mid":
        return f"middle_block.{2 * int(index) if part == 'resnets' else 1}.{rest}"
    place = int(block) * (layers + 1)
    slot = 0 if part == "resnets" else 1
    if part == "downsamplers":
        return f"input_blocks.{place + layers + 1}.0.op.{rest.removeprefix('conv.')}"
    if part == "upsamplers":
        return f"output_blocks.{place + layers}.{1 + (int(block) in with_attention)}.{rest}"
    if kind == "down":
        return f"input_blocks.{place + int(index) + 1}.{slot}.{rest}"
    return f"output_blocks.{place + int(index)}.{slot}.{rest}"


def original_vae(name: str, levels: int) -> str:
    """Levels of the decoder are counted from the finest."""
    for ours, theirs in VAE_PARTS.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("resnets", "block")
    name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
    return name.replace("down_blocks", "down")


def original_checkpoint(pipeline) -> dict[str, torch.Tensor]:
    unet, vae = pipeline.unet, pipeline.vae
    attention = {i for i, block in enumerate(unet.up_blocks) if hasattr(block, "attentions")}
    names = {
        "model.diffusion_model.": (unet, lambda name: original_unet(
            name, unet.config.layers_per_block, attention)),
        "first_stage_model.": (vae, lambda name: original_vae(name, len(vae.decoder.up_blocks))),
        "cond_stage_model.transformer.text_model.": (
            pipeline.text_encoder, lambda name: name.removeprefix("text_model.")),
    }
    return {prefix + rename(name): tensor.contiguous()
            for prefix, (module, rename) in names.items()
            for name, tensor in module.state_dict().items()}


@pytest.fixture
def checkpoint(sd_pipeline, tmp_path):
    """A checkpoint, and a folder with configurations but no weights."""
    sd_pipeline.save_pretrained(tmp_path / "config")
    for weights in (tmp_path / "config").rglob("*.safetensors"):
        weights.unlink()
    save_file(original_checkpoint(sd_pipeline), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors", tmp_path / "config"


def test_a_single_file_is_the_model_that_was_written(sd_pipeline, checkpoint):
    path, config = checkpoint
    model = load_model(path, config=config, device="cpu")
    expected = load_model(copy.deepcopy(sd_pipeline))
    assert model.fingerprint == expected.fingerprint
    assert torch.equal(model.embed(["a cat"])["encoder_hidden_states"],
                       expected.embed(["a cat"])["encoder_hidden_states"])
    x, requests = torch.rand(1, 3, 16, 16), [Request(0, "a cat")]
    made = [TensorSynthesizer(b, "paper", steps=3, noise_scale=1.0).synthesize(x, requests).images
            for b in (model, expected)]
    torch.testing.assert_close(*made, atol=2e-4, rtol=0)  # weights may lie otherwise in memory


def test_a_single_file_is_read_in_the_dtype_that_was_asked_for(checkpoint):
    path, config = checkpoint
    model = load_model(path, config=config, device="cpu", dtype=torch.bfloat16)
    assert model.unet.dtype == model.vae.dtype == torch.bfloat16
    assert model.pipeline.text_encoder.dtype == torch.bfloat16
