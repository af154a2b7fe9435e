"""This module holds the stage "export", which writes the averaged weights in the diffusers folder layout, as float16
safetensors. It stands apart because it needs no data and no device, only what the other stages have left."""

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import save

from ..files import atomic, write_json
from . import recipe
from .diffusion import TOKENIZER_FOLDER
from .loop import load, sound
from .tokenizer import END, PAD, START

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
}


def export(run: Path, folder: Path) -> None:
    """Write RUN's model to `folder`, which must not exist; it appears under its name when it is complete."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists; move it away first")
    vae = load(run / "vae.pt", ["average"], "the stage vae")["average"]
    diffusion = load(run / "diffusion.pt", ["average"], "the stage diffusion")["average"]
    factor = load(run / "latents.pt", ["scaling_factor"], "the stage latents")["scaling_factor"]
    words = run / TOKENIZER_FOLDER / "vocab.json"
    with sound(words, "the stage diffusion"):
        vocabulary = json.loads(words.read_text(encoding="utf-8"))
        special = {"bos_token_id": vocabulary[START], "eos_token_id": vocabulary[END], "pad_token_id": vocabulary[PAD]}
    if not (isinstance(factor, float) and math.isfinite(factor) and factor > 0):
        raise ValueError(f"{run / 'latents.pt'} says the scaling factor {factor}; run the stage latents again")

    text = recipe.TEXT | {"vocab_size": len(vocabulary)} | special
    with atomic(folder) as temporary:
        shutil.copytree(run / TOKENIZER_FOLDER, temporary / "tokenizer")
        write_json(temporary / "model_index.json", MODEL_INDEX)
        (temporary / "scheduler").mkdir()
        write_json(temporary / "scheduler" / "scheduler_config.json", recipe.SCHEDULER)
        for name, config, weights, file in (
            ("unet", recipe.UNET, part(diffusion, "unet."), "diffusion_pytorch_model.safetensors"),
            ("vae", recipe.VAE | {"scaling_factor": factor}, vae, "diffusion_pytorch_model.safetensors"),
            ("text_encoder", text, part(diffusion, "text_encoder."), "model.safetensors"),
        ):
            (temporary / name).mkdir()
            write_json(temporary / name / "config.json", config)
            half = {key: value.half().contiguous() for key, value in weights.items()}
            for key, value in half.items():
                check_finite(value, f"{key} of the {name}", run)
            (temporary / name / file).write_bytes(save(half, {"format": "pt"}))
        check_loads(temporary, run)


def check_finite(values: torch.Tensor, what: str, run: Path) -> None:
    """Raises FloatingPointError for weights that half precision does not hold."""
    if not torch.isfinite(values).all():
        raise FloatingPointError(f"{what} is not finite in float16; the training in {run} has gone astray")


def check_loads(folder: Path, run: Path) -> None:
    """Raises ValueError if the folder, just written, is no whole model: so a run lacks some of its weights."""
    from ..model import load as load_model

    try:
        load_model(folder, device="cpu")
    except ValueError as error:
        raise ValueError(f"{run} does not hold a whole model: {error}") from error


def part(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
