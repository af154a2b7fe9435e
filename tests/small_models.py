"""Many tests need a network but not a trained one. This module makes them small random members of the Stable Diffusion
2.1 family.

The configurations are written as the published `config.json` files are, so that sd21 and diffusers read the same text.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from sd21.config import TextConfig, UNetConfig, VAEConfig
from sd21.text import TextEncoder
from sd21.unet import UNet
from sd21.vae import VAE

UNET_JSON = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.10.0",
    "act_fn": "silu",
    "attention_head_dim": [2, 4, 4],  # numbers of heads, 16 channels each
    "block_out_channels": [32, 64, 64],
    "center_input_sample": False,
    "cross_attention_dim": 48,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 16,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "sample_size": 16,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "use_linear_projection": True,
}
VAE_JSON = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.10.0",
    "act_fn": "silu",
    "block_out_channels": [16, 16, 32, 32],  # four levels: 8 pixels per latent, as at full size
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 128,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT_JSON = {
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_size": 48,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "pad_token_id": 1,
    "projection_dim": 32,
    "torch_dtype": "float32",
    "transformers_version": "4.25.0",
    "vocab_size": 640,
}
SCHEDULER_JSON = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": "0.8.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
WORDS = ["a", "an", "brain", "breast", "image", "lesion", "mri", "of", "scan", "tumor", "tumour", "ultrasound", "with"]


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Draw random weights, none of them zero, scaled so that activations and output stay of order one. A tensor that is
    loaded to the wrong place, or not at all, then shows. Works on modules of any origin that name weights alike."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in sorted(module.named_parameters()):
        noise = torch.empty(weight.shape, dtype=torch.float32).normal_(generator=generator)
        if weight.ndim > 1:
            # An embedding's rows are inputs of their own; elsewhere a row sums fan_in products.
            scale = 0.5 if "embedding.weight" in name else 1 / math.sqrt(weight[0].numel())
            weight.copy_(noise * scale)
        else:
            is_gain = "norm" in name and name.endswith("weight")
            weight.copy_(0.2 * noise + (1 if is_gain else 0))
    return module


def small_unet(seed: int = 0, **changes) -> UNet:
    return randomise(UNet(UNetConfig.from_dict(UNET_JSON | changes)), seed).requires_grad_(False)


def unet_inputs(batch=2, height=16, width=16, length=7, dtype=torch.float64, seed=0):
    """States (B, 4, h, w), times (B,) between the training times, and contexts (B, length, D) for a small UNet."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 4, height, width, generator=generator, dtype=dtype)
    context = torch.randn(batch, length, UNET_JSON["cross_attention_dim"], generator=generator, dtype=dtype)
    t = torch.linspace(3.25, 981.5, batch, dtype=dtype)
    return x, t, context


def small_vae(seed: int = 1, **changes) -> VAE:
    return randomise(VAE(VAEConfig.from_dict(VAE_JSON | changes)), seed).requires_grad_(False)


def small_text_encoder(seed: int = 2, **changes) -> TextEncoder:
    return randomise(TextEncoder(TextConfig.from_dict(TEXT_JSON | changes)), seed).requires_grad_(False)


def write_small_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer: each byte as CLIP spells it, alone and at a word's end, and WORDS as whole tokens."""
    # CLIP (after GPT-2) spells each byte as a printable character: as itself if it is one, else from U+0100 on.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens, merges = [*characters, *(c + "</w>" for c in characters)], []
    for word in WORDS:
        left = word[0]
        for i, letter in enumerate(word[1:], start=1):
            letter = letter if i < len(word) - 1 else letter + "</w>"
            if f"{left} {letter}" not in merges:
                merges.append(f"{left} {letter}")
                tokens.append(left + letter)
            left += letter
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    assert len(tokens) <= TEXT_JSON["vocab_size"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "!", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!", **special}))


def write_small_pipeline(folder: Path, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Write a whole checkpoint in the diffusers layout, with random weights, as the published ones lie on disk."""
    folder = Path(folder)
    parts = {
        "unet": ("config.json", UNET_JSON, "diffusion_pytorch_model.safetensors", small_unet(seed)),
        "vae": ("config.json", VAE_JSON, "diffusion_pytorch_model.safetensors", small_vae(seed + 1)),
        "text_encoder": ("config.json", TEXT_JSON, "model.safetensors", small_text_encoder(seed + 2)),
    }
    for name, (config_name, config, weights_name, module) in parts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / config_name).write_text(json.dumps(config, indent=2))
        save_file(module.state_dict(), folder / name / weights_name, metadata={"format": "pt"})
    (folder / "scheduler").mkdir()
    scheduler = SCHEDULER_JSON | {"prediction_type": prediction_type}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2))
    write_small_tokenizer(folder / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.10.0",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def said(caplog):
    """The one line of the log "sd21"."""
    (record,) = [record for record in caplog.records if record.name == "sd21"]
    return record.getMessage()
