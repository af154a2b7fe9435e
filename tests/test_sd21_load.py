"""A folder in the diffusers layout must load to the same networks as diffusers and transformers load. A folder that is
not a whole and sound model must give one clear error before any weight is read. These tests check both."""

import hashlib
import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from relative_error import relative
from safetensors.torch import load_file, save_file
from small_models import TEXT_JSON, UNET_JSON, write_small_pipeline
from transformers import CLIPTextModel, CLIPTokenizer

import sd21
from sd21 import weights

UNET_FILE, TEXT_FILE = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
PROMPTS = ["a scan of a brain with a tumour", "Ultrasound!"]


@pytest.fixture(scope="module")
def model(folder):
    return sd21.load(folder, device="cpu", dtype=torch.float32)


@pytest.fixture
def no_reading(monkeypatch):
    def read(self, device, dtype):
        pytest.fail(f"{self.key} was read before the error")

    monkeypatch.setattr(weights.Stored, "read", read)


def inputs(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 16, 12, generator=generator)
    image = torch.rand(2, 3, 64, 48, generator=generator) * 2 - 1
    return x, torch.tensor([3.0, 981.0]), model.embed(PROMPTS).float(), image


def outputs(model):
    x, t, context, image = inputs(model)
    latent = model.encode(image)
    return {"unet": model.unet(x, t, context), "latent": latent, "image": model.decode(latent), "context": context}


@torch.no_grad()
def reference_outputs(folder, model):
    """The same outputs, by diffusers and transformers from the same folder."""
    unet, vae = UNet2DConditionModel.from_pretrained(folder / "unet"), AutoencoderKL.from_pretrained(folder / "vae")
    text = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    ids = CLIPTokenizer.from_pretrained(folder / "tokenizer")(
        PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    x, t, context, image = inputs(model)
    latent = vae.encode(image).latent_dist.mean * vae.config.scaling_factor
    return {
        "unet": unet(x, t, context).sample,
        "latent": latent,
        "image": vae.decode(latent / vae.config.scaling_factor).sample,
        "context": text(ids).last_hidden_state,
    }


def test_the_loaded_networks_compute_what_diffusers_and_transformers_compute(folder, model):
    got, expected = outputs(model), reference_outputs(folder, model)
    for name in expected:
        # float32 rounding, summed in another order through some dozen layers.
        assert relative(got[name], expected[name]) < 1e-5, name


def test_a_folder_that_diffusers_and_transformers_save_loads_to_the_same_networks(folder, model, tmp_path):
    saved = shutil.copytree(folder, tmp_path / "saved")
    for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"), (CLIPTextModel, "text_encoder")):
        module = kind.from_pretrained(folder / part)
        shutil.rmtree(saved / part)
        module.save_pretrained(saved / part)
    (saved / "text_encoder/config.json").write_text(
        json.dumps(TEXT_JSON)
    )  # not theirs: this test is of the weights' names
    again = sd21.load(saved, device="cpu", dtype=torch.float32)
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(model, part).state_dict(), getattr(again, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), part


def test_what_the_scheduler_config_says(folder, tmp_path, model):
    assert (model.prediction_type, model.image_size) == ("epsilon", 128)
    assert model.alphas_cumprod.dtype == torch.float64 and model.alphas_cumprod.shape == (1000,)
    published = DDIMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod.double()
    # diffusers multiplies a thousand factors in float32: relative errors add up to 1000 * 2^-24 = 6e-5 at the worst.
    torch.testing.assert_close(model.alphas_cumprod, published, rtol=6e-5, atol=0)
    velocity = write_small_pipeline(tmp_path / "v", prediction_type="v_prediction")
    assert sd21.load(velocity, device="cpu").prediction_type == "v_prediction"


def test_weights_arrive_frozen_channels_last_and_in_the_dtype_asked_for(folder):
    model = sd21.load(folder, device="cpu", dtype=torch.bfloat16)
    assert (model.dtype, model.device) == (torch.bfloat16, torch.device("cpu"))
    dtypes = {"unet": torch.bfloat16, "text_encoder": torch.bfloat16, "vae": torch.float32}  # the VAE stays float32
    for part, dtype in dtypes.items():
        module = getattr(model, part)
        assert not module.training and not any(weight.requires_grad for weight in module.parameters())
        for name, weight in module.state_dict().items():
            assert weight.dtype == dtype and weight.device.type == "cpu", name
            assert weight.ndim != 4 or weight.is_contiguous(memory_format=torch.channels_last), name
        assert not any(buffer.is_meta for buffer in module.buffers())


# Relative errors of whole networks. Each of some 30 roundings in series adds a relative error of at most half a unit in
# the last place (2^-11 in float16, 2^-8 in bfloat16), of random sign: about sqrt(30) of them, and as much again for
# the rounded weights.
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 11 * 2**-11), (torch.bfloat16, 11 * 2**-8)])
def test_half_precision_stays_within_rounding_of_float32(folder, model, dtype, bound):
    half = sd21.load(folder, device="cpu", dtype=dtype)
    x, t, context, image = inputs(model)
    out = half.unet(x, t, context)
    assert out.dtype == torch.float32
    assert 2**-14 < relative(out, model.unet(x, t, context)) < bound  # above zero: it did run in half precision
    assert 2**-14 < relative(half.embed(PROMPTS).float(), context) < bound
    latent = model.encode(image)
    assert torch.equal(half.encode(image), latent) and torch.equal(half.decode(latent), model.decode(latent))


def halve(copy, suffix):
    for name in (UNET_FILE, VAE_FILE, TEXT_FILE):
        half = {key: value.half() for key, value in load_file(copy / name).items()}
        save_file(half, copy / name.replace(".safetensors", f"{suffix}.safetensors"))


def test_variant_fp16_is_read_if_asked_for_and_taken_if_alone(copy, model):
    halve(copy, ".fp16")
    rounded = {key: value.half().float() for key, value in model.unet.state_dict().items()}

    def is_rounded(loaded):
        return all(torch.equal(value, rounded[key]) for key, value in loaded.unet.state_dict().items())

    assert is_rounded(sd21.load(copy, variant="fp16", device="cpu", dtype=torch.float32))
    assert not is_rounded(sd21.load(copy, device="cpu", dtype=torch.float32))
    for name in (UNET_FILE, VAE_FILE, TEXT_FILE):
        (copy / name).unlink()
    with pytest.warns(UserWarning, match=r"holds unet, vae, text_encoder in float16 only"):
        assert is_rounded(sd21.load(copy, device="cpu", dtype=torch.float32))


def test_shards_are_one_set_of_weights(copy, model):
    everything = load_file(copy / UNET_FILE)
    keys = sorted(everything)
    (copy / UNET_FILE).unlink()
    for number, part in enumerate((keys[:100], keys[100:]), start=1):
        shard = UNET_FILE.replace(".safetensors", f"-{number:05}-of-00002.safetensors")
        save_file({key: everything[key] for key in part}, copy / shard)
    loaded = sd21.load(copy, device="cpu", dtype=torch.float32).unet.state_dict()
    assert all(torch.equal(loaded[key], everything[key]) for key in keys)


def test_the_published_files_older_names_are_understood(copy, model):
    """The SD 2.1 VAE has the attention names of diffusers before 0.18; its text encoder has a buffer of positions."""
    vae, text = load_file(copy / VAE_FILE), load_file(copy / TEXT_FILE)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    older = {}
    for key, value in vae.items():
        for now, then in names.items():
            key = key.replace(f"attentions.0.{now}.", f"attentions.0.{then}.")
        older[key] = value
    assert sum("proj_attn" in key for key in older) == 4  # weight and bias, encoder and decoder
    save_file(older, copy / VAE_FILE)
    save_file(text | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, copy / TEXT_FILE)
    got = outputs(sd21.load(copy, device="cpu", dtype=torch.float32))
    for name, value in outputs(model).items():
        assert torch.equal(got[name], value), name


def test_a_tensor_that_is_there_twice_is_an_error(copy, no_reading):
    def both(tensors):
        key = "decoder.mid_block.attentions.0.to_q.weight"
        tensors[key.replace("to_q", "query")] = tensors[key].clone()

    change(copy / VAE_FILE, both)
    with pytest.raises(sd21.CheckpointError, match=r"two tensors are .*to_q.weight .*\.query\.weight, "):
        sd21.load(copy, device="cpu")
    everything = load_file(copy / UNET_FILE)
    (copy / UNET_FILE).unlink()
    for number in (1, 2):
        save_file(everything, copy / UNET_FILE.replace(".safetensors", f"-{number:05}-of-00002.safetensors"))
    with pytest.raises(sd21.CheckpointError, match=r"both .*-00001-of-00002.* and .*-00002-of-00002.* hold"):
        sd21.load(copy, device="cpu")


def test_prompts_are_padded_with_the_models_own_token_and_cut_with_a_warning(model):
    ids = model.tokenizer(["a brain"], padding="max_length", max_length=77).input_ids[0]
    assert model.tokenizer.pad_token_id == 0 and ids[4:] == [0] * 73  # start, a, brain, end
    expected = model.text_encoder(torch.tensor([ids]))
    assert torch.equal(model.embed(["a brain"]), expected) and expected.shape == (1, 77, 48)
    with pytest.warns(UserWarning, match="cut from 102 to 77 tokens"):
        model.embed(["brain " * 100])
    with pytest.raises(ValueError, match="list of strings"):
        model.embed("a brain")


def test_identity_is_the_sha256_of_every_file_read(folder, model):
    assert (model.identity["source"], model.identity["revision"]) == (str(folder), None)
    files = model.identity["files"]
    assert {UNET_FILE, VAE_FILE, TEXT_FILE, "scheduler/scheduler_config.json", "tokenizer/vocab.json"} < set(files)
    for name, digest in files.items():
        assert digest == hashlib.sha256((folder / name).read_bytes()).hexdigest(), name


def test_compile_is_an_option(folder, model):
    assert sd21.load(folder, device="cpu", compile=True).unet._compiled_call_impl is not None
    assert model.unet._compiled_call_impl is None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 64, 64), r"\(B, 3, H, W\), got \(3, 64, 64\)"),
        (torch.zeros(1, 1, 64, 64), r"got \(1, 1, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "float tensor"),
        (torch.zeros(1, 3, 64, 60), "multiples of 8, got 64x60"),
        (torch.full((1, 3, 64, 64), 255.0), r"\[-1, 1\], got \[255, 255\]"),
        (torch.full((1, 3, 64, 64), torch.nan), r"\[-1, 1\], got \[nan, nan\]"),
    ],
)
def test_encode_refuses_what_is_not_an_image(model, image, message):
    with pytest.raises(ValueError, match=message):
        model.encode(image)


def test_decode_refuses_what_is_not_a_latent(model):
    with pytest.raises(ValueError, match=r"latent must be \(B, 4, h, w\), got \(1, 3, 8, 8\)"):
        model.decode(torch.zeros(1, 3, 8, 8))


def change(path, edit):
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def rename(tensors, key):
    tensors["surplus"] = tensors.pop(key)


FAULTS = {
    "1 missing (conv_in.bias); 1 unexpected (surplus)": lambda t: rename(t, "conv_in.bias"),
    "1 mis-shaped (conv_in.bias is (3,), expected (32,))": lambda t: t.update({"conv_in.bias": torch.zeros(3)}),
    "1 not floating-point (conv_in.bias is I8)": lambda t: t.update({"conv_in.bias": t["conv_in.bias"].to(torch.int8)}),
    "20 unexpected (x00, x01, x02, x03, x04, x05, and 14 more)": lambda t: t.update(
        {f"x{i:02}": torch.zeros(1) for i in range(20)}
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_keys_that_do_not_fit_are_named(copy, no_reading, message):
    change(copy / UNET_FILE, FAULTS[message])
    with pytest.raises(sd21.CheckpointError) as error:
        sd21.load(copy, device="cpu")
    assert message in str(error.value) and "unet" in str(error.value)


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"PK\x03\x04" + data, lambda _: b""]
)
def test_a_truncated_or_foreign_file_is_named(copy, no_reading, damage):
    (copy / VAE_FILE).write_bytes(damage((copy / VAE_FILE).read_bytes()))
    with pytest.raises(
        sd21.CheckpointError, match=r"vae/diffusion_pytorch_model.safetensors cannot be read as a safetens"
    ):
        sd21.load(copy, device="cpu")


@pytest.mark.parametrize(
    "part",
    [
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        UNET_FILE,
        VAE_FILE,
        TEXT_FILE,
        "tokenizer/vocab.json",
    ],
)
def test_a_folder_that_lacks_a_part_says_which(copy, no_reading, part):
    (copy / part).unlink()
    with pytest.raises(sd21.CheckpointError, match=f"lacks {part}"):
        sd21.load(copy, device="cpu")


def test_a_folder_of_pickles_is_refused_with_the_reason(copy, no_reading):
    (copy / UNET_FILE).rename(copy / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(sd21.CheckpointError, match=r"diffusion_pytorch_model.bin is there, a pickle.* runs"):
        sd21.load(copy, device="cpu")


def test_an_absent_variant_is_named(copy, no_reading):
    with pytest.raises(sd21.CheckpointError, match=r"lacks unet/diff\S+.bf16.safetensors \(diff\S+ is there\)"):
        sd21.load(copy, variant="bf16", device="cpu")


def test_a_config_that_is_not_understood_names_its_file(copy, no_reading):
    (copy / "unet/config.json").write_text(json.dumps(UNET_JSON | {"novelty": 1}))
    with pytest.raises(sd21.ConfigError, match=r"unet/config.json.*novelty"):
        sd21.load(copy, device="cpu")
    (copy / "unet/config.json").write_text("{")
    with pytest.raises(sd21.CheckpointError, match=r"unet/config.json is not JSON"):
        sd21.load(copy, device="cpu")


def test_parts_of_different_models_are_told_apart(copy, no_reading):
    def widen(tensors):
        tensors |= {key: torch.zeros(len(value), 64) for key, value in tensors.items() if value.shape[1:] == (48,)}

    (copy / "unet/config.json").write_text(json.dumps(UNET_JSON | {"cross_attention_dim": 64}))
    change(copy / UNET_FILE, widen)
    with pytest.raises(sd21.ConfigError, match=r"64 wide .* 48 wide"):
        sd21.load(copy, device="cpu")


def test_a_tokenizer_that_the_text_encoder_does_not_know_is_refused(copy, no_reading):
    (copy / "text_encoder/config.json").write_text(json.dumps(TEXT_JSON | {"vocab_size": 100}))
    change(copy / TEXT_FILE, lambda t: t.update({k: v[:100].clone() for k, v in t.items() if v.shape[0] == 640}))
    with pytest.raises(sd21.CheckpointError, match="text encoder knows 100"):
        sd21.load(copy, device="cpu")


def test_a_wrong_prediction_type_or_dtype_is_refused(folder, no_reading):
    with pytest.raises(sd21.CheckpointError, match="prediction_type is 'epsilon', got 'v_prediction'"):
        sd21.load(folder, prediction_type="v_prediction", device="cpu")
    with pytest.raises(ValueError, match=r"dtype must be one of .*, got torch.int8"):
        sd21.load(folder, dtype=torch.int8, device="cpu")
