"""The original single-file layout is compared with diffusers' own conversion of the same keys and tensors."""

import json
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from original_layout import FULL, modules, original_layout
from safetensors.torch import save_file
from small_models import TEXT_JSON, UNET_JSON, VAE_JSON, randomise, said, write_small_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

import sd21
from sd21 import keys, single_file, weights
from sd21.config import TextConfig, UNetConfig, VAEConfig

# diffusers drops the 24th block by its name, so 23 layers stay here, as at full size.
SMALL_TEXT_JSON = TEXT_JSON | {"num_hidden_layers": 23}
SMALL = (UNetConfig.from_dict(UNET_JSON), VAEConfig.from_dict(VAE_JSON), TextConfig.from_dict(SMALL_TEXT_JSON))


def by_diffusers(tensors, unet_json, vae_json, text_config):
    """diffusers' conversion, by part. The text model only tells the converter its width."""
    with torch.device("meta"):
        text = CLIPTextModel(text_config)
    return {
        "unet": convert_ldm_unet_checkpoint(dict(tensors), unet_json),
        "vae": convert_ldm_vae_checkpoint(dict(tensors), vae_json),
        "text_encoder": convert_open_clip_checkpoint(text, dict(tensors)),
    }


def text_config(published):
    return CLIPTextConfig(**{key: published[key] for key in published if key not in ("bos_token_id", "eos_token_id")})


@pytest.fixture(scope="module")
def tensors():
    return original_layout(SMALL, [randomise(m, seed) for seed, m in enumerate(modules(SMALL))])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary") / "tokenizer"
    write_small_tokenizer(folder)
    return folder


@pytest.fixture
def file(tensors, tmp_path, monkeypatch):
    """A small file; `load` expects the published sizes, so those are made small too."""
    for name, config in zip(("UNET", "VAE", "TEXT"), SMALL, strict=True):
        monkeypatch.setattr(single_file, name, config)
    monkeypatch.setattr(single_file, "LATENT_SIZES", {"epsilon": 16, "v_prediction": 24})
    save_file(tensors, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_full_size_names_and_shapes_are_those_that_diffusers_converts_to():
    with torch.device("meta"):
        networks = modules(FULL)
    tensors = original_layout(FULL, networks)
    unet, vae, text = FULL
    published = by_diffusers(
        tensors,
        {"layers_per_block": 2, "block_out_channels": unet.block_out_channels},
        {"down_block_types": vae.down_block_types, "up_block_types": vae.up_block_types},
        CLIPTextConfig(hidden_size=text.hidden_size, num_hidden_layers=1, num_attention_heads=16),
    )
    stored = {key: weights.Stored(None, key, tuple(value.shape), "F32") for key, value in tensors.items()}
    ours = single_file.published_names(keys.sort_out(stored, single_file.EXTRAS)[0], *FULL)
    counts = {"unet": 686, "vae": 248, "text_encoder": 372}  # tensors in the published diffusers-layout files
    for (part, count), network in zip(counts.items(), networks, strict=True):
        assert {key: tensor.shape for key, tensor in ours[part].items()} == {
            key: tuple(tensor.shape) for key, tensor in published[part].items()
        }
        assert len(ours[part]) == count
        weights.check(network, ours[part], part)


# One tensor of each kind, in full size, under its name in the published file and in the LDM and OpenCLIP modules.
PUBLISHED = {
    "model.diffusion_model.time_embed.2.weight": (1280, 1280),
    "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
    "model.diffusion_model.input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
    "model.diffusion_model.input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight": (1280, 1024),
    "model.diffusion_model.middle_block.2.emb_layers.1.weight": (1280, 1280),
    "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),  # module 1, as there is no attention
    "model.diffusion_model.output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
    "model.diffusion_model.output_blocks.11.1.proj_out.weight": (320, 320),
    "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
    "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
    "first_stage_model.encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
    "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
    "first_stage_model.decoder.up.1.upsample.conv.weight": (256, 256, 3, 3),
    "first_stage_model.decoder.mid.block_2.conv1.weight": (512, 512, 3, 3),
    "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
    "cond_stage_model.model.positional_embedding": (77, 1024),
    "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight": (3072, 1024),
    "cond_stage_model.model.transformer.resblocks.0.mlp.c_proj.weight": (1024, 4096),
    "cond_stage_model.model.ln_final.weight": (1024,),
}


def test_the_names_are_the_published_ones():
    """Where diffusers' conversion is lenient (it takes an upsampler as either module), the names themselves decide."""
    with torch.device("meta"):
        tensors = original_layout(FULL, modules(FULL))
    assert {key: tuple(tensors[key].shape) for key in PUBLISHED if key in tensors} == PUBLISHED


def test_every_tensor_is_the_one_that_diffusers_converts(tensors, file):
    published = by_diffusers(tensors, UNET_JSON, VAE_JSON, text_config(SMALL_TEXT_JSON))
    ours = single_file.published_names(keys.sort_out(weights.index([file]), single_file.EXTRAS)[0], *SMALL)
    for part, expected in published.items():
        assert ours[part].keys() == expected.keys()
        for key, tensor in ours[part].items():
            assert torch.equal(tensor.read(torch.device("cpu"), torch.float32), expected[key]), key


@torch.no_grad()
def test_the_loaded_networks_compute_what_diffusers_computes_from_the_same_file(tensors, file, tokenizer, tmp_path):
    model = sd21.load(file, prediction_type="epsilon", tokenizer=tokenizer, device="cpu", dtype=torch.float32)
    published = by_diffusers(tensors, UNET_JSON, VAE_JSON, text_config(SMALL_TEXT_JSON))
    unet = UNet2DConditionModel.from_config(UNET_JSON).eval()
    unet.load_state_dict(published["unet"], strict=True)
    vae = AutoencoderKL.from_config(VAE_JSON).eval()
    vae.load_state_dict(published["vae"], strict=True)
    (tmp_path / "text").mkdir()  # its own loader knows names with and without "text_model."
    (tmp_path / "text/config.json").write_text(json.dumps(SMALL_TEXT_JSON))
    save_file(published["text_encoder"], tmp_path / "text/model.safetensors", metadata={"format": "pt"})
    text = CLIPTextModel.from_pretrained(tmp_path / "text").eval()

    generator = torch.Generator().manual_seed(3)
    x, image = torch.randn(2, 4, 8, 8, generator=generator), torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1
    ids = model.tokenizer(["a brain scan"] * 2, padding="max_length", max_length=77, return_tensors="pt").input_ids
    context = model.embed(["a brain scan"] * 2)
    # float32 rounding, summed in another order.
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(context, text(ids).last_hidden_state, **close)
    torch.testing.assert_close(model.unet(x, 500, context), unet(x, 500, context).sample, **close)
    torch.testing.assert_close(model.encode(image), vae.encode(image).latent_dist.mean * 0.18215, **close)
    torch.testing.assert_close(model.decode(x), vae.decode(x / 0.18215).sample, **close)


@pytest.mark.slow
def test_the_caller_says_which_of_the_two_models_it_is(file, tokenizer):
    for prediction_type, size in (("epsilon", 128), ("v_prediction", 192)):
        model = sd21.load(file, prediction_type=prediction_type, tokenizer=tokenizer, device="cpu")
        assert (model.prediction_type, model.image_size) == (prediction_type, size)
        assert set(model.identity["files"]) >= {"small.safetensors", "tokenizer/vocab.json"}


def test_the_published_latent_sizes():
    assert {kind: size * FULL[1].factor for kind, size in single_file.LATENT_SIZES.items()} == {
        "epsilon": 512,
        "v_prediction": 768,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "prediction_type is None; state"),
        ({"prediction_type": "sample"}, "prediction_type must be 'epsilon' or 'v_prediction', got 'sample'"),
        ({"prediction_type": "epsilon"}, "has no tokenizer; name one"),
        ({"prediction_type": "epsilon", "variant": "fp16"}, "has no variants"),
    ],
)
def test_what_the_file_does_not_say_must_be_said(file, arguments, message):
    with pytest.raises(sd21.CheckpointError, match=message):
        sd21.load(file, device="cpu", **arguments)


def test_an_unknown_or_missing_key_is_an_error(tensors, file, tokenizer):
    first = "model.diffusion_model.input_blocks.0.0.bias"
    surplus = {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1), "control_model.x": torch.zeros(1)}
    save_file({key: value for key, value in tensors.items() if key != first} | surplus, file)
    with pytest.raises(sd21.CheckpointError) as error:
        sd21.load(file, prediction_type="epsilon", tokenizer=tokenizer, device="cpu")
    assert "1 missing (conv_in.bias); 2 unexpected (control_model.x, label_emb.0.0.weight)" in str(error.value)


def test_a_file_of_another_layout_is_an_error(tensors, file, tokenizer):
    save_file({key: value for key, value in tensors.items() if not key.startswith("first_stage_model.")}, file)
    with pytest.raises(sd21.CheckpointError, match=r"no keys under \['first_stage_model.'\]"):
        sd21.load(file, prediction_type="epsilon", tokenizer=tokenizer, device="cpu")


def read(file, tokenizer, prediction_type="epsilon"):
    """The checkpoint, from the file's header alone."""
    return single_file.read(file, None, prediction_type, tokenizer)


def networks(file, tokenizer):
    """Which tensor of the file goes where, and in what shape."""
    checkpoint = read(file, tokenizer)
    return checkpoint.unet, checkpoint.vae, checkpoint.text_encoder


# What trainers and converters leave in such files, and how the log calls it.
EXTRAS = {
    "global_step": "global_step",
    "epoch": "epoch",
    "scale_factor": "scale_factor",
    "first_stage_model.loss.discriminator.main.0.weight": "first_stage_model.loss.* (1)",
    "cond_stage_model.model.visual.conv1.weight": "cond_stage_model.model.visual.* (1)",
    "cond_stage_model.model.attn_mask": "cond_stage_model.model.attn_mask",
    "cond_stage_model.transformer.text_model.embeddings.position_ids": "*.position_ids (1)",
    "model_ema.diffusion_modelinput_blocks00bias": "model_ema.* (1)",
    "denoiser.sigmas": "denoiser.sigmas",
    "v_pred": "v_pred marks a network that predicts v, and the file is loaded as one of epsilon",
    "ztsnr": "ztsnr marks a schedule with zero terminal SNR, which is not implemented",
}


@pytest.mark.parametrize("key", EXTRAS)
def test_an_extra_is_left_out_and_named_in_the_log(tensors, file, tokenizer, caplog, key):
    plain = networks(file, tokenizer)
    caplog.clear()
    save_file(tensors | {key: torch.zeros(32)}, file)
    assert networks(file, tokenizer) == plain
    assert EXTRAS[key] in said(caplog)


def test_a_file_without_extras_is_read_without_a_word(tensors, file, tokenizer, caplog):
    read(file, tokenizer)
    assert not caplog.records


def test_v_pred_in_a_file_loaded_as_such_is_as_it_should_be(tensors, file, tokenizer, caplog):
    save_file(tensors | {"v_pred": torch.zeros(0)}, file)
    read(file, tokenizer, "v_prediction")
    assert "v_pred" in said(caplog) and "marks" not in said(caplog)


WRAPPED = {
    "a training state": lambda key: f"state_dict.{key}",
    "a compiled part": lambda key: key.replace("model.diffusion_model.", "model.diffusion_model._orig_mod."),
    "both, at many places": lambda key: f"_orig_mod.state_dict.{key}".replace("resblocks.", "resblocks._orig_mod."),
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_come_off_the_keys(tensors, file, tokenizer, wrapped):
    expected = tuple(
        {name: replace(tensor, key=wrapped(tensor.key)) for name, tensor in part.items()}
        for part in networks(file, tokenizer)
    )
    save_file({wrapped(key): value for key, value in tensors.items()}, file)
    assert networks(file, tokenizer) == expected


@pytest.mark.slow
def test_a_wrapped_file_with_all_extras_loads_to_the_same_weights(tensors, file, tokenizer, caplog):
    how = {"prediction_type": "epsilon", "tokenizer": tokenizer, "device": "cpu", "dtype": torch.float32}
    plain = sd21.load(file, **how)
    caplog.clear()
    everything = tensors | {key: torch.zeros(32) for key in EXTRAS}
    save_file({WRAPPED["both, at many places"](key): value for key, value in everything.items()}, file)
    again = sd21.load(file, **how)
    assert "and 5 more" in said(caplog) and "\n" not in said(caplog)
    for part in single_file.PREFIXES:
        ours, theirs = getattr(plain, part).state_dict(), getattr(again, part).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), part


@pytest.mark.parametrize("key", ["input_blocks.0.0.bias", "conv_in.bias"])
def test_two_keys_of_one_name_are_an_error(tensors, file, tokenizer, key):
    first = "model.diffusion_model.input_blocks.0.0.bias"
    twin = f"state_dict.model.diffusion_model.{key}"
    save_file(tensors | {twin: tensors[first].clone()}, file)
    with pytest.raises(sd21.CheckpointError) as error:
        read(file, tokenizer)
    assert "two tensors are" in str(error.value) and f"({first}, {twin})" in str(error.value)


def test_vae_attention_of_linear_maps_loads_too(tensors, file, tokenizer):
    plain = networks(file, tokenizer)
    attention = [key for key in tensors if ".mid.attn_1." in key and tensors[key].ndim == 4]
    assert len(attention) == 8  # q, k, v and proj_out, of encoder and decoder
    save_file(tensors | {key: tensors[key].flatten(1) for key in attention}, file)
    assert networks(file, tokenizer) == plain


@pytest.mark.parametrize("shape", [(), (3 * 48 + 1, 48)])
def test_a_fused_tensor_that_does_not_divide_is_an_error(tensors, file, tokenizer, shape):
    key = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    save_file(tensors | {key: torch.zeros(shape)}, file)
    with pytest.raises(sd21.CheckpointError, match=r"1 unexpected \(text_model.encoder.layers.0.self_attn.qkv.weight"):
        sd21.load(file, prediction_type="epsilon", tokenizer=tokenizer, device="cpu")


def test_what_the_header_says_holds(tensors, file, tokenizer):
    for stated, prediction_type in (("epsilon", "epsilon"), ("v", "v_prediction")):
        save_file(tensors, file, metadata={"modelspec.prediction_type": stated})
        assert read(file, tokenizer, None).scheduler_config.prediction_type == prediction_type
        assert (
            read(file, tokenizer, prediction_type).unet_config.sample_size == single_file.LATENT_SIZES[prediction_type]
        )
        (other,) = {"epsilon", "v_prediction"} - {prediction_type}
        with pytest.raises(sd21.CheckpointError, match=rf"modelspec.prediction_type = '{stated}', got .*'{other}'"):
            read(file, tokenizer, other)
    save_file(tensors, file, metadata={"modelspec.prediction_type": "flow"})
    with pytest.raises(sd21.CheckpointError, match=r"= 'flow', expected 'epsilon' or 'v'"):
        read(file, tokenizer)


@pytest.mark.parametrize("family", ["stable-diffusion-v1", "stable-diffusion-xl-v1-base", "Flux.1-dev"])
def test_a_file_of_another_family_says_so(tensors, file, tokenizer, family):
    save_file(tensors, file, metadata={"modelspec.architecture": family})
    with pytest.raises(sd21.CheckpointError, match=f"is of another family: .*'{family}'; expected a Stable"):
        read(file, tokenizer)
    save_file(tensors, file, metadata={"modelspec.architecture": "stable-diffusion-v2-512"})
    assert read(file, tokenizer).scheduler_config.prediction_type == "epsilon"
