"""LoRA weights in every layout of diffusers' and peft's, against peft's own layers."""

import copy
import json

import pytest
import torch
from pipelines import pixel_pipeline
from safetensors.torch import save_file

from benchmarks.families import pipelines
from dreamda_aug import load_model
from dreamda_aug.errors import ModelError
from dreamda_aug.models import adapted

peft = pytest.importorskip("peft")
X, T = torch.linspace(-1, 1, 256).view(1, 4, 8, 8), torch.tensor(500)
PATTERNS = dict(rank_pattern={"to_k": 3}, alpha_pattern={"to_k": 5, r"resnets.*\.conv1": 1})


def config(**changes):
    targets = ["to_q", "to_k", "conv1"]
    return peft.LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": targets,
                              "init_lora_weights": False, **PATTERNS, **changes})


@pytest.fixture
def folder(sd_pipeline, tmp_path):
    sd_pipeline.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@torch.no_grad()
def output(unet):
    return unet(X, T, torch.linspace(-1, 1, 6 * 8).view(1, 6, 8)).sample


def diffusers_weights(pipeline, path):
    pipeline.save_lora_weights(
        path, unet_lora_layers=peft.get_peft_model_state_dict(pipeline.unet),
        unet_lora_adapter_metadata=pipeline.unet.peft_config["default"].to_dict())


def kohya(pipeline, path):
    """The layout of kohya-ss' trainer, which diffusers converts."""
    found, path = {}, path / "kohya.safetensors"
    path.parent.mkdir()
    for name, layer in pipeline.unet.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            key = "lora_unet_" + name.replace(".", "_")
            found[key + ".lora_down.weight"] = layer.lora_A["default"].weight
            found[key + ".lora_up.weight"] = layer.lora_B["default"].weight
            found[key + ".alpha"] = torch.tensor(float(layer.lora_alpha["default"]))
    save_file({k: v.detach().contiguous() for k, v in found.items()}, path)


LAYOUTS = {
    "diffusers": diffusers_weights,
    "a denoiser of diffusers": lambda pipeline, path: pipeline.unet.save_lora_adapter(path),
}


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}, {"alpha_pattern": {}}], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_lora_weights_of_every_layout_are_those_that_peft_computes_with(
    folder, sd_pipeline, tmp_path, layout, changes
):
    pipeline = copy.deepcopy(sd_pipeline)
    plain = output(pipeline.unet)
    pipeline.unet.add_adapter(config(**changes))
    expected = output(pipeline.unet)
    LAYOUTS[layout](pipeline, tmp_path / "lora")
    model = load_model(folder, device="cpu", lora=tmp_path / "lora")
    assert model.lora == str(tmp_path / "lora")
    torch.testing.assert_close(output(model.unet), expected, atol=1e-5, rtol=1e-5)
    assert (expected - plain).abs().max() > 1e-2


def test_a_layout_of_another_trainer_goes_through_diffusers(folder, sd_pipeline, tmp_path):
    pipeline = copy.deepcopy(sd_pipeline)
    pipeline.unet.add_adapter(config(target_modules=["to_q", "to_k"], alpha_pattern={}))
    kohya(pipeline, tmp_path / "lora")
    made = load_model(folder, device="cpu", lora=tmp_path / "lora/kohya.safetensors").unet
    torch.testing.assert_close(output(made), output(pipeline.unet), atol=1e-5, rtol=1e-5)
    next(p for name, p in pipeline.unet.named_parameters() if "lora_B" in name).data += torch.nan
    kohya(pipeline, tmp_path / "broken")
    with pytest.raises(ModelError, match="as LoRA weights .*NaNs detected"):
        load_model(folder, device="cpu", lora=tmp_path / "broken/kohya.safetensors")


@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}], ids=str)
def test_peft_saves_lora_weights_of_any_denoiser(tmp_path, changes):
    pipeline = pixel_pipeline()
    pipeline.save_pretrained(tmp_path / "base")
    wrapped = peft.get_peft_model(pipeline.unet, config(**changes))
    wrapped.save_pretrained(tmp_path / "lora")
    made = load_model(tmp_path / "base", device="cpu", lora=str(tmp_path / "lora")).unet
    x = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(made(x, T).sample, wrapped(x, T).sample, atol=1e-5, rtol=1e-5)


def test_text_encoders_and_transformers_have_lora_weights_too(tmp_path):
    pipeline = pipelines.sd3()
    pipeline.save_pretrained(tmp_path / "base")
    own = pipelines.sd3()
    own.text_encoder = copy.deepcopy(own.text_encoder)  # not the second one, too
    layers = {}
    for part, targets in (("transformer", ["to_q"]), ("text_encoder", ["q_proj"])):
        lora = config(target_modules=targets, rank_pattern={}, alpha_pattern={}, lora_alpha=2)
        wrapped = peft.get_peft_model(getattr(own, part), lora)  # its layers change in place
        layers[f"{part}_lora_layers"] = {
            name.removeprefix("base_model.model."): tensor
            for name, tensor in peft.get_peft_model_state_dict(wrapped).items()}
    own.save_lora_weights(tmp_path / "lora", **layers)
    size = dict(image_size=(16, 16))
    made, expected, plain = (
        load_model(tmp_path / "base", device="cpu", lora=tmp_path / "lora", **size),
        load_model(own, **size), load_model(tmp_path / "base", device="cpu", **size))
    inputs = [model.embed(["a cat"]) for model in (made, expected, plain)]
    for name in inputs[0]:
        torch.testing.assert_close(inputs[0][name], inputs[1][name], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(inputs[0]["encoder_hidden_states"],
                              inputs[2]["encoder_hidden_states"], atol=1e-3)
    torch.testing.assert_close(made.predict(X, T, inputs[1]), expected.predict(X, T, inputs[1]),
                               atol=1e-5, rtol=1e-4)


Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
A, B = torch.ones(2, 8), torch.ones(8, 2)
PAIR = {f"unet.{Q}.lora_A.weight": A, f"unet.{Q}.lora_B.weight": B}


@pytest.mark.parametrize("tensors, message", [
    ({}, "expected keys such as 'unet.LAYER.lora_A.weight'.* found none"),
    ({**PAIR, f"unet.{Q}.lora_A.weight": A * float("nan")}, "not finite"),
    ({**PAIR, "unet.nowhere.lora_A.weight": A}, "found 'unet.nowhere.lora_A.weight', which f"),
    ({**PAIR, f"unet.elsewhere.{Q}.lora_A.weight": A}, "found 'unet.elsewhere.* fit no layer"),
    ({"a.lora_A.weight": A, "a.lora_B.weight": B}, "found 'a.lora_A.weight', 'a.lora_B.weight', w"),
    ({"conv_in.weight": A}, "Invalid LoRA checkpoint"),
    ({**PAIR, f"unet.{Q}.lora_B.weight": torch.ones(9, 2)}, r"\(9, 8\), is not .* \(8, 8\)"),
    ({**PAIR, f"unet.{Q}.lora_magnitude_vector": torch.ones(8)}, "lora_magnitude_vector"),
    ({**PAIR, f"unet.{Q}.lora_A.other.weight": A}, "lora_A.weight', which fit no layer"),
    ({**PAIR, f"unet.{Q}.lora_B.weight": B * 0}, "change nothing: every lora_B is 0"),
    ({f"unet.{Q}.lora_down.weight": A}, "expected keys such as .*found .*lora_down.weight'"),
])
def test_weights_that_would_have_no_effect_or_a_wrong_one_are_refused(
    folder, tmp_path, tensors, message
):
    path = tmp_path / "lora.safetensors"
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path)
    with pytest.raises(ModelError, match=f"could not load '{path}' as LoRA weights .*{message}"):
        load_model(folder, device="cpu", lora=path)


def test_the_name_of_an_adapter_may_stand_in_the_keys(folder, tmp_path):
    found = []
    for name in (".", ".mine."):
        save_file({key.replace(".weight", f"{name}weight"): tensor for key, tensor in PAIR.items()},
                  tmp_path / "lora.safetensors")
        model = load_model(folder, device="cpu", lora=tmp_path / "lora.safetensors")
        found.append(model.unet.get_submodule(Q).weight)
    assert torch.equal(*found)


def test_files_that_are_no_lora_weights_are_refused(folder, tmp_path):
    for name in ("one", "other"):
        save_file(PAIR, tmp_path / f"{name}.safetensors")
    (tmp_path / "some.bin").write_bytes(b"a pickle")
    (tmp_path / "empty").mkdir()
    for path, message in ((".", "or one other .safetensors file, found one.saf"),
                          ("some.bin", "only .safetensors files are opened"),
                          ("empty", "pytorch_lora_weights.safetensors")):
        with pytest.raises(ModelError, match=f"as LoRA weights .*{message}"):
            load_model(folder, device="cpu", lora=tmp_path / path)


def test_an_adaptation_is_checked_before_it_is_applied(class_folder, tmp_path):
    base = {"name": "it", **adapted.base_identity(load_model(class_folder, device="cpu").unet)}
    good = {"base": base, "classes": {"names": ["a"], "null_class": 1}, "loss": {}, "identity": {}}
    conv = {"unet.conv_in.lora_A.weight": torch.ones(1, 1, 3, 3),
            "unet.conv_in.lora_B.weight": torch.ones(8, 1, 1, 1)}

    rows = torch.ones(2, 32)

    def load(card=good, rows=rows, lora=conv):
        text = json.dumps({"format": adapted.FORMAT, "format_version": 1, **card})
        (tmp_path / adapted.CARD).write_text(text)
        save_file({"rows": rows}, tmp_path / adapted.CLASS_ROWS)
        save_file(lora, tmp_path / adapted.LORA)
        return load_model(class_folder, device="cpu", lora=tmp_path)

    model = load()
    assert (model.class_names, model.guidable) == (["a"], True)
    assert torch.equal(model.unet.class_embedding.weight, rows)
    for changes, message in (
        (dict(rows=rows[:1].clone()), "has 1 classes.* null_class=1"),
        (dict(card={**good, "base": {**base, "weights": "0" * 64}}), "another model"),
        (dict(lora={}), "found none"),
    ):
        with pytest.raises(ModelError, match=message):
            load(**changes)
