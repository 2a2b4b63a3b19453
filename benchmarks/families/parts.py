"""Tiny random tokenizers, text encoders and VAEs, made in memory."""

from functools import cache
from typing import Any

import tokenizers
import torch
import transformers
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
)

WIDTH = 8
_CHARACTERS = [chr(code) for code in range(32, 127)]
_SPECIAL = ["<pad>", "<unk>", "<end>"]
VOCABULARY = len(_SPECIAL) + len(_CHARACTERS)


@cache
def tokenizer(longest: int = 77) -> Any:
    """A token for each printable character, and one for the end."""
    words = {word: number for number, word in enumerate([*_SPECIAL, *_CHARACTERS])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", 2)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="<end>",
        model_max_length=longest)
    made.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}:"
    return made


@cache
def clip(pooled: bool = True) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, projection_dim=WIDTH)
    kind = transformers.CLIPTextModelWithProjection if pooled else transformers.CLIPTextModel
    return _made(kind, config)


@cache
def t5(width: int = WIDTH) -> Any:
    return _made(transformers.T5EncoderModel, transformers.T5Config(
        vocab_size=VOCABULARY, d_model=width, d_kv=4, d_ff=WIDTH, num_layers=1, num_heads=2,
        pad_token_id=0, eos_token_id=2))


@cache
def bert() -> Any:
    return _made(transformers.BertModel, transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=80))


def _decoder() -> dict[str, Any]:
    return dict(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=WIDTH,
                num_attention_heads=2, num_key_value_heads=1, head_dim=4,
                max_position_embeddings=2048, pad_token_id=0, bos_token_id=1, eos_token_id=2)


@cache
def gemma() -> Any:
    return _made(transformers.Gemma2Model,
                 transformers.Gemma2Config(num_hidden_layers=2, **_decoder()))


@cache
def qwen3(layers: int = 2) -> Any:
    return _made(transformers.Qwen3Model,
                 transformers.Qwen3Config(num_hidden_layers=layers, **_decoder()))


def vae(**changes: Any) -> AutoencoderKL:
    """Halves each side; its posterior has no spread, so that a draw is its mode."""
    shape = dict(block_out_channels=(8, 8), in_channels=3, out_channels=3, latent_channels=4,
                 norm_num_groups=4, layers_per_block=1, scaling_factor=0.5, shift_factor=0.1,
                 down_block_types=("DownEncoderBlock2D",) * 2,
                 up_block_types=("UpDecoderBlock2D",) * 2)
    return _without_spread(_seeded(lambda: AutoencoderKL(**{**shape, **changes})))


def flux2_vae() -> AutoencoderKLFlux2:
    made = _without_spread(_seeded(lambda: AutoencoderKLFlux2(
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)))
    made.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, 16))
    made.bn.running_var.copy_(torch.linspace(0.5, 2, 16))
    return made


def qwen_vae() -> AutoencoderKLQwenImage:
    return _without_spread(_seeded(lambda: AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.8, 1.2, 1.0])))


def deep_compression_vae() -> AutoencoderDC:
    return _seeded(lambda: AutoencoderDC(
        latent_channels=4, attention_head_dim=4, scaling_factor=0.4,
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ())))


def flow(**options: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**options)


def seeded(make: Any, **shape: Any) -> Any:
    """A random model whose output depends on everything: zeros at the start are noise, too."""
    model = _seeded(lambda: make(**shape))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def _seeded(make: Any) -> Any:
    torch.manual_seed(0)
    return make().eval()


def _made(kind: Any, config: Any) -> Any:
    return _seeded(lambda: kind(config))


def _without_spread(made: Any) -> Any:
    """Set the logarithm of the posterior's variance to its lower bound."""
    half = made.quant_conv.weight.shape[0] // 2
    with torch.no_grad():
        made.quant_conv.weight[half:] = 0
        made.quant_conv.bias[half:] = -40
    return made
