"""Published config.json files must be read whole. These tests check that every field is understood, known to be
irrelevant, or an error."""

import json
import math
from dataclasses import fields

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from small_models import SCHEDULER_JSON, TEXT_JSON, UNET_JSON, VAE_JSON
from transformers import CLIPTextConfig

from sd21.config import ConfigError, SchedulerConfig, TextConfig, UNetConfig, VAEConfig
from sd21.published import MAX_LEVELS
from sd21.text import TextEncoder
from sd21.unet import UNet
from sd21.vae import VAE

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
        (UNetConfig, {"_class_name": "UNet2DModel"}, "describes 'UNet2DModel', expected 'UNet2DConditionModel'"),
        (UNetConfig, {"down_block_types": ["AttnDownBlock2D"] * 3}, "down_block_types must be 3 of"),
        (UNetConfig, {"up_block_types": ["UpBlock2D"] * 2}, "up_block_types must be 3 of"),
        (UNetConfig, {"attention_head_dim": [2, 4]}, "attention_head_dim needs 1 or 3 entries, got 2"),
        (UNetConfig, {"attention_head_dim": [2, 3, 4]}, "64 channels do not divide into 3 heads"),
        (UNetConfig, {"layers_per_block": 0}, "layers_per_block must be an integer from 1 to 6, or 3 of them"),
        (UNetConfig, {"block_out_channels": [32, 60, 64]}, "multiple of norm_num_groups 16"),
        (UNetConfig, {"block_out_channels": []}, "block_out_channels must list 1 to 6 widths"),
        (UNetConfig, {"block_out_channels": 32}, "block_out_channels must list 1 to 6 widths"),
        (UNetConfig, {"block_out_channels": [32] * 7}, "block_out_channels must list 1 to 6 widths"),
        (UNetConfig, {"block_out_channels": [32, 64, 10**400]}, "block_out_channels must be an integer from 1 to 8192"),
        (UNetConfig, {"down_block_types": [["DownBlock2D"]] * 3}, "down_block_types must be 3 of"),
        (UNetConfig, {"down_block_types": None}, "down_block_types must be 3 of"),
        (UNetConfig, {"use_linear_projection": False}, "Stable Diffusion 1"),
        (UNetConfig, {"cross_attention_dim": "48"}, "cross_attention_dim must be an integer from 1 to 8192, got '48'"),
        (UNetConfig, {"sample_size": [16, 16]}, "sample_size must be an integer from 1 to 256"),
        (VAEConfig, {"up_block_types": ["AttnUpDecoderBlock2D"] * 4}, "up_block_types must be 4 times"),
        (VAEConfig, {"scaling_factor": 0}, "scaling_factor must be a number from"),
        (TextConfig, {"hidden_act": "relu"}, "hidden_act must be 'gelu'"),
        (TextConfig, {"num_attention_heads": 5}, "hidden_size 48 does not divide into 5 heads"),
        (SchedulerConfig, {"prediction_type": "sample"}, "prediction_type must be 'epsilon' or 'v_prediction'"),
        (TextConfig, {"hidden_act": ["gelu"]}, "hidden_act must be 'gelu'"),
        (SchedulerConfig, {"beta_end": 0.0001}, "expected beta_start <= beta_end, got 0.00085 and 0.0001"),
        (SchedulerConfig, {"trained_betas": [0.1]}, r"trained_betas = \[0.1\] is not implemented"),
    ],
)
def test_a_value_that_makes_no_network_is_an_error(kind, changes, message):
    with pytest.raises(ConfigError, match=message):
        kind.from_dict(dict(PUBLISHED)[kind] | changes)


# None of these is a number that any field takes. JSON has 1e999, which is read as inf, and NaN as Python writes it.
NO_NUMBERS = (-1, 0, 10**8, 10**400, 10**5000, math.nan, math.inf, -math.inf, True, "4", None, {}, [[4]], [4, [4]])


@KINDS
def test_every_number_has_bounds(kind, published):
    """Without them, a file could ask for a network that takes hours to build, or for an eps of infinity."""
    numbers = [f.name for f in fields(kind) if not isinstance(published.get(f.name, f.default), (str, bool))]
    numbers = [name for name in numbers if not name.endswith("_types")]
    assert len(numbers) >= 3
    for name in numbers:
        for value in NO_NUMBERS:
            with pytest.raises(ConfigError, match=name) as error:
                kind.from_dict(published | {name: value})
            assert len(str(error.value)) < 300 and "\n" not in str(error.value)


# torch builds some ten modules a millisecond on the meta device, so that this many take a few seconds.
MODULES = 25_000


@pytest.mark.slow
def test_the_largest_networks_within_the_bounds_are_built_quickly():
    high = {kind: {f.name: f.metadata["bounds"][1] for f in fields(kind) if f.metadata} for kind, _ in PUBLISHED}
    widths, crossed = (8192,) * MAX_LEVELS, [f"CrossAttn{way}Block2D" for way in ("Down", "Up")]
    types = [(f"{way}EncoderBlock2D".replace("UpEn", "UpDe"),) * MAX_LEVELS for way in ("Down", "Up")]
    wide = {"block_out_channels": widths}
    with torch.device("meta"):
        networks = (
            UNet(
                UNetConfig(
                    **high[UNetConfig] | wide,
                    down_block_types=(crossed[0],) * MAX_LEVELS,
                    up_block_types=(crossed[1],) * MAX_LEVELS,
                )
            ),
            VAE(VAEConfig(**high[VAEConfig] | wide, down_block_types=types[0], up_block_types=types[1])),
            TextEncoder(TextConfig(**high[TextConfig])),
        )
    assert sum(len(list(network.modules())) for network in networks) < MODULES
    most = high[SchedulerConfig]["num_train_timesteps"]  # with the greatest betas nothing of an image would be left
    assert len(SchedulerConfig("epsilon", num_train_timesteps=most).alphas_cumprod()) == most == 10_000


@KINDS
@pytest.mark.parametrize("published_as", [[], None, 3, "config", [{}]])
def test_a_file_that_holds_no_object_is_an_error(kind, published, published_as):
    with pytest.raises(ConfigError, match=f"{kind.__name__}: expected a JSON object"):
        kind.from_dict(published_as)


def test_messages_stay_short():
    for changes in ({f"field_{n}": n for n in range(1000)}, {"act_fn": "x" * 10**6}, {"_class_name": ["x"] * 10**5}):
        with pytest.raises(ConfigError) as error:
            UNetConfig.from_dict(UNET_JSON | changes)
        assert len(str(error.value)) < 400


def test_what_is_stated_holds_where_the_file_is_silent():
    silent, stated = without(SCHEDULER_JSON, "prediction_type"), {"prediction_type": "v_prediction"}
    assert SchedulerConfig.from_dict(silent, stated).prediction_type == "v_prediction"
    assert SchedulerConfig.from_dict(SCHEDULER_JSON, stated).prediction_type == "epsilon"


def test_an_empty_list_of_trained_betas_is_none():
    assert SchedulerConfig.from_dict(SCHEDULER_JSON | {"trained_betas": []}) == SchedulerConfig.from_dict(
        SCHEDULER_JSON
    )


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
