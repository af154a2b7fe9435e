"""Published config.json files must be read whole. These tests check that every field is understood, known to be
irrelevant, or an error."""

import json

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from small_models import SCHEDULER_JSON, TEXT_JSON, UNET_JSON, VAE_JSON
from transformers import CLIPTextConfig

from sd21.config import ConfigError, SchedulerConfig, TextConfig, UNetConfig, VAEConfig

PUBLISHED = [(UNetConfig, UNET_JSON), (VAEConfig, VAE_JSON), (TextConfig, TEXT_JSON), (SchedulerConfig, SCHEDULER_JSON)]
KINDS = pytest.mark.parametrize("kind, published", PUBLISHED, ids=[kind.__name__ for kind, _ in PUBLISHED])


def without(published, name):
    return {key: value for key, value in published.items() if key != name}


def test_fields_reach_the_config():
    config = UNetConfig.from_dict(UNET_JSON)
    assert config.block_out_channels == (32, 64, 64) and config.cross_attention_dim == 48
    assert config.attention_head_dim == (2, 4, 4) and config.layers_per_block == (2, 2, 2)
    assert VAEConfig.from_dict(VAE_JSON).factor == 8
    assert VAEConfig.from_dict(VAE_JSON).scaling_factor == 0.18215
    assert VAEConfig.from_dict(VAE_JSON | {"scaling_factor": 0.5}).scaling_factor == 0.5
    assert TextConfig.from_dict(TEXT_JSON | {"hidden_act": "quick_gelu"}).hidden_act == "quick_gelu"
    assert (
        SchedulerConfig.from_dict(SCHEDULER_JSON | {"prediction_type": "v_prediction"}).prediction_type
        == "v_prediction"
    )


@KINDS
def test_unknown_field_is_an_error(kind, published):
    with pytest.raises(ConfigError, match=r"unknown fields.*rotary_base"):
        kind.from_dict(published | {"rotary_base": 10})


@KINDS
def test_missing_field_is_an_error(kind, published):
    assert kind.REQUIRED
    for name in kind.REQUIRED:
        with pytest.raises(ConfigError, match=f"does not say.*{name}"):
            kind.from_dict(without(published, name))


@KINDS
def test_a_value_that_is_not_implemented_is_an_error(kind, published):
    for name, value in kind.FIXED.items():
        kind.from_dict(published | {name: value})
        with pytest.raises(ConfigError, match=f"{name} = 'another' is not implemented"):
            kind.from_dict(published | {name: "another"})


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        (UNetConfig, {"_class_name": "UNet2DModel"}, "describes a UNet2DModel, expected a UNet2DConditionModel"),
        (UNetConfig, {"down_block_types": ["AttnDownBlock2D"] * 3}, "down_block_types must be 3 of"),
        (UNetConfig, {"up_block_types": ["UpBlock2D"] * 2}, "up_block_types must be 3 of"),
        (UNetConfig, {"attention_head_dim": [2, 4]}, "attention_head_dim must be a positive int, or 3"),
        (UNetConfig, {"attention_head_dim": [2, 3, 4]}, "64 channels do not divide into 3 heads"),
        (UNetConfig, {"layers_per_block": 0}, "layers_per_block must be a positive int"),
        (UNetConfig, {"block_out_channels": [32, 60, 64]}, "multiple of norm_num_groups 16"),
        (UNetConfig, {"block_out_channels": []}, "block_out_channels must be positive ints"),
        (UNetConfig, {"use_linear_projection": False}, "Stable Diffusion 1"),
        (UNetConfig, {"cross_attention_dim": "48"}, "cross_attention_dim must be a positive int, got '48'"),
        (UNetConfig, {"sample_size": [16, 16]}, "sample_size must be a positive int"),
        (VAEConfig, {"up_block_types": ["AttnUpDecoderBlock2D"] * 4}, "up_block_types must be 4 times"),
        (VAEConfig, {"scaling_factor": 0}, "scaling_factor must be a positive float"),
        (TextConfig, {"hidden_act": "relu"}, "hidden_act must be 'gelu'"),
        (TextConfig, {"num_attention_heads": 5}, "hidden_size 48 does not divide into 5 heads"),
        (SchedulerConfig, {"prediction_type": "sample"}, "prediction_type must be 'epsilon' or 'v_prediction'"),
        (SchedulerConfig, {"beta_end": 0.0001}, "expected beta_start <= beta_end"),
    ],
)
def test_a_value_that_makes_no_network_is_an_error(kind, changes, message):
    with pytest.raises(ConfigError, match=message):
        kind.from_dict(dict(PUBLISHED)[kind] | changes)


def test_files_of_todays_libraries_are_understood():
    """Such files write out every option there is, with its default."""
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**without(UNET_JSON, "_class_name")), AutoencoderKL(**VAE_JSON)
    assert UNetConfig.from_dict(json.loads(unet.to_json_string())) == UNetConfig.from_dict(UNET_JSON)
    assert VAEConfig.from_dict(json.loads(vae.to_json_string())) == VAEConfig.from_dict(VAE_JSON)
    text = CLIPTextConfig(**TEXT_JSON)
    for use_diff in (True, False):
        assert TextConfig.from_dict(json.loads(text.to_json_string(use_diff=use_diff))) == TextConfig.from_dict(
            TEXT_JSON
        )


@pytest.mark.parametrize(
    "name", ["DDIM", "PNDM", "DPMSolverMultistep", "EulerDiscrete", "EulerAncestralDiscrete", "UniPCMultistep", "DDPM"]
)
def test_any_samplers_file_gives_the_schedule(name):
    scheduler = getattr(diffusers, f"{name}Scheduler").from_config(SCHEDULER_JSON)
    config = SchedulerConfig.from_dict(json.loads(scheduler.to_json_string()))
    assert config == SchedulerConfig.from_dict(SCHEDULER_JSON)
    # diffusers multiplies 1000 factors in float32, each rounded to 6e-8: a random walk of some 1e-6.
    expected = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(config.alphas_cumprod(), expected, rtol=1e-5, atol=0)
    assert config.alphas_cumprod().dtype == torch.float64
