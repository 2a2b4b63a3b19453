"""Small priors in folders, and images of two classes that they do not know."""

import PIL.Image
import pytest
import torch
from adaptation_images import squares
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from pipelines import text_encoder_and_tokenizer, tiny_text_unet


@pytest.fixture
def image_folder(tmp_path):
    """Twelve images in the class folders left and right."""
    for number, image in enumerate(squares(12)):
        place = tmp_path / "images" / ("left", "right")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        array = (image[0] * 255).round().to(torch.uint8).numpy()
        PIL.Image.fromarray(array).save(place / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def sd_folder(sd_pipeline, tmp_path):
    sd_pipeline.save_pretrained(tmp_path / "sd")
    return tmp_path / "sd"


@pytest.fixture
def sdxl_folder(sd_pipeline, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    encoder, tokenizer = text_encoder_and_tokenizer(folder)
    torch.manual_seed(1)
    config = transformers.CLIPTextConfig(**{**encoder.config.to_dict(), "projection_dim": 16})
    changes = dict(cross_attention_dim=32, addition_embed_type="text_time",
                   addition_time_embed_dim=4, projection_class_embeddings_input_dim=16 + 6 * 4)
    unet = UNet2DConditionModel(**{
        k: v for k, v in tiny_text_unet().config.items() if not k.startswith("_")} | changes)
    StableDiffusionXLPipeline(
        vae=sd_pipeline.vae, text_encoder=encoder, tokenizer=tokenizer, tokenizer_2=tokenizer,
        text_encoder_2=transformers.CLIPTextModelWithProjection(config).eval(), unet=unet.eval(),
        scheduler=sd_pipeline.scheduler,
    ).save_pretrained(tmp_path / "sdxl")
    return tmp_path / "sdxl"
