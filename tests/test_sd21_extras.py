"""Folders in the diffusers layout whose files hold more than their networks, or hold them under wrapped names, load all
the same. The log names the extras once. tests/test_sd21_single_file.py has the same of the other layout."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import SCHEDULER_JSON, said

import sd21
from sd21 import sources

UNET_FILE, VAE_FILE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae"))
TEXT_FILE = "text_encoder/model.safetensors"


def read(folder, prediction_type=None):
    """The checkpoint, from configs and headers alone."""
    return sources.read_folder(folder, None, prediction_type, None)


def keys(checkpoint):
    """By network: which tensor of a file goes where, and in what shape."""
    parts = (checkpoint.unet, checkpoint.vae, checkpoint.text_encoder)
    return [{name: (stored.key, stored.shape) for name, stored in part.items()} for part in parts]


def change(path, edit):
    save_file(edit(load_file(path)), path)


EXTRAS = {
    "text_projection.weight": "text_projection.weight",
    "logit_scale": "logit_scale",
    "vision_model.encoder.layers.0.mlp.fc1.weight": "vision_model.* (1)",
    "visual_projection.weight": "visual_projection.* (1)",
    "text_model.embeddings.position_ids": "*.position_ids (1)",
}


@pytest.mark.parametrize("key", EXTRAS)
def test_a_text_encoders_extra_is_left_out_and_named(folder, copy, caplog, key):
    change(copy / TEXT_FILE, lambda tensors: tensors | {key: torch.zeros(3)})
    assert keys(read(copy)) == keys(read(folder))
    assert said(caplog).endswith(f"it is left out: text_encoder: {EXTRAS[key]}.")


def test_the_extras_of_all_files_are_one_line(copy, caplog):
    for file in (UNET_FILE, VAE_FILE, TEXT_FILE):
        change(copy / file, lambda tensors: tensors | {"global_step": torch.zeros(())})
    sd21.load(copy, device="cpu")
    assert "text_encoder: global_step, unet: global_step, vae: global_step" in said(caplog)


def test_a_folder_without_extras_is_loaded_without_a_word(folder, caplog):
    sd21.load(folder, device="cpu")
    assert not caplog.records


@pytest.mark.parametrize("key", ["text_projection.weight", "vision_model.post_layernorm.weight", "loss.logvar"])
def test_what_belongs_to_another_network_stays_an_error(copy, key):
    change(copy / VAE_FILE, lambda tensors: tensors | {key: torch.zeros(3)})
    with pytest.raises(sd21.CheckpointError, match=rf"vae, do not fit its network: 1 unexpected \({key}\)"):
        sd21.load(copy, device="cpu")


@pytest.mark.parametrize("wrapper", ["state_dict.", "_orig_mod.", "state_dict._orig_mod."])
def test_wrappers_come_off_the_keys(folder, copy, wrapper):
    for file in (UNET_FILE, VAE_FILE, TEXT_FILE):
        change(copy / file, lambda tensors: {wrapper + key: value for key, value in tensors.items()})
    expected = [{name: (wrapper + key, shape) for name, (key, shape) in part.items()} for part in keys(read(folder))]
    assert keys(read(copy)) == expected


def test_two_keys_that_are_one_without_their_wrappers_are_an_error(copy):
    change(copy / UNET_FILE, lambda tensors: tensors | {"_orig_mod.conv_in.bias": torch.zeros(32)})
    with pytest.raises(sd21.CheckpointError, match=r"two tensors are conv_in.bias .*\(_orig_mod.conv_in.bias, "):
        read(copy)


@pytest.mark.parametrize("names", [{}, {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}])
def test_vae_attention_of_1x1_convolutions_loads(folder, copy, names):
    def convolutions(tensors):
        changed = {}
        for key, value in tensors.items():
            if ".attentions.0.to_" in key and value.ndim == 2:
                value = value[:, :, None, None].clone()
            for now, then in names.items():
                key = key.replace(f"attentions.0.{now}.", f"attentions.0.{then}.")
            changed[key] = value
        return changed

    change(copy / VAE_FILE, convolutions)
    assert any(
        value.shape == (32, 32, 1, 1) for key, value in load_file(copy / VAE_FILE).items() if "attentions" in key
    )
    expected = sd21.load(folder, device="cpu").vae.state_dict()
    found = sd21.load(copy, device="cpu").vae.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_stated_prediction_type_fills_a_silent_scheduler_and_contradicts_no_other(copy):
    silent = {key: value for key, value in SCHEDULER_JSON.items() if key != "prediction_type"}
    config = copy / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(silent))
    assert sd21.load(copy, prediction_type="v_prediction", device="cpu").prediction_type == "v_prediction"
    with pytest.raises(sd21.ConfigError, match=r"scheduler_config.json: .* does not say \['prediction_type'\]"):
        sd21.load(copy, device="cpu")
    config.write_text(json.dumps(SCHEDULER_JSON))
    with pytest.raises(sd21.CheckpointError, match="says its prediction_type is 'epsilon', got 'v_prediction'"):
        sd21.load(copy, prediction_type="v_prediction", device="cpu")
