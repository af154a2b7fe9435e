"""This module holds Stable Diffusion 2.1 as one object, and `load`, which makes that object from a folder, a file or a
hub id. The networks and the files that hold their weights meet only here."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import single_file, sources
from .command import out_of_memory
from .config import PREDICTION_TYPES, ConfigError
from .files import sha256
from .text import TextEncoder
from .unet import UNet
from .vae import VAE
from .weights import CheckpointError, check, fill
from .words import one_line, shown

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False, repr=False)
class StableDiffusion:
    """The frozen networks of one checkpoint, with what the checkpoint says of itself. Made by `load`.

    unet: `unet(x, t, context)`, see UNet; predicts eps or v, as `prediction_type` says.
    alphas_cumprod: alpha[t]^2 at the training times, float64 (1000,), on the CPU.
    image_size: pixels along each side of the images the model was trained on.
    dtype: the dtype of the UNet and the text encoder. The VAE is never narrower than float32: it runs once per image,
    float16 overflows in its decoder on some images (huggingface/diffusers#3999), and an inversion must reproduce its
    output.
    """

    unet: UNet
    vae: VAE
    text_encoder: TextEncoder
    tokenizer: CLIPTokenizer
    alphas_cumprod: Tensor
    prediction_type: str
    image_size: int
    device: torch.device
    dtype: torch.dtype
    source: str
    revision: str | None
    files: dict[str, Path]

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W) in [-1, 1], sides divisible by 8 -> latent (B, 4, H/8, W/8): the posterior's mean times
        the scaling factor, float32 (float64 in a float64 model). Raises ValueError for any other image."""
        image = image.to(self.device)
        if image.is_floating_point():  # the VAE refuses any other image
            image = image.to(self._vae_dtype)
        return self.vae.encode(image) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """latent (B, 4, h, w) -> image (B, 3, 8h, 8w), about [-1, 1] but not clamped; float32 (float64 in a float64
        model). Raises ValueError for another shape."""
        latent = latent.to(self.device, self._vae_dtype)
        return self.vae.decode(latent / self.vae.config.scaling_factor)

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> Tensor:
        """B prompts -> context (B, 77, D), in the model's dtype. Warns if it cuts a prompt at 77 tokens."""
        if isinstance(prompts, str):
            raise ValueError(f"prompts must be a list of strings, got the string {prompts!r}; write [{prompts!r}]")
        length = self.text_encoder.config.max_position_embeddings
        for prompt in prompts:
            tokens = len(self.tokenizer(prompt).input_ids)
            if tokens > length:
                warnings.warn(f"prompt cut from {tokens} to {length} tokens: {prompt!r}", stacklevel=2)
        ids = self.tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return self.text_encoder(ids.to(self.device))

    @cached_property
    def identity(self) -> dict:
        """Which model this is: source, revision, and the sha256 of every file it was read from, by name."""
        digests = {name: sha256(path) for name, path in sorted(self.files.items())}
        return {"source": self.source, "revision": self.revision, "files": digests}

    @property
    def _vae_dtype(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)


def load(
    source: str | Path = sources.DEFAULT,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    variant: str | None = None,
    prediction_type: str | None = None,
    tokenizer: str | Path | None = None,
    local_files_only: bool = False,
    compile: bool = False,
) -> StableDiffusion:
    """Load Stable Diffusion 2.x from `source`: a folder in the diffusers layout, a single .safetensors file in the
    original layout, a hub id, or "mini", the small checkpoint inside this package.

    device: default cuda, else mps, else cpu. dtype: default bfloat16 on cuda, float32 elsewhere.
    revision: a hub id's commit, tag or branch. variant: "fp16" for `*.fp16.safetensors` (taken anyway if alone).
    prediction_type: "epsilon" or "v_prediction", for a source that does not tell. If the source tells, it is checked.
    tokenizer: a folder or hub id to take the tokenizer from; a single file needs it.
    local_files_only: look in the hub's cache alone (HF_HUB_OFFLINE=1 does the same). compile: torch.compile the UNet.

    Only safetensors files are read, and nothing that a checkpoint carries is ever executed. Each tensor goes from its
    file to the device, so there is no second copy of the model. What a file holds beyond its networks is left out, and
    the log "sd21" names it. Raises ValueError for a device or dtype that cannot be had, CheckpointError for a source,
    file or set of keys that cannot be loaded and ConfigError for a config that is not understood, all before any
    weights are read; CheckpointError also if a file changes or breaks while they are.
    """
    device = find_device(device)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {shown(dtype)}")
    if prediction_type not in (None, *PREDICTION_TYPES):
        known = " or ".join(map(repr, PREDICTION_TYPES))
        raise CheckpointError(f"prediction_type must be {known}, got {shown(prediction_type)}")

    path, commit = sources.locate(source, revision, variant, local_files_only)
    vocabulary = None if tokenizer is None else sources.locate_tokenizer(tokenizer, local_files_only)
    if path.is_dir():
        checkpoint = sources.read_folder(path, variant, prediction_type, vocabulary)
    else:
        checkpoint = single_file.read(path, variant, prediction_type, vocabulary)
    says = checkpoint.scheduler_config.prediction_type
    if prediction_type not in (None, says):
        raise CheckpointError(f"{source} says its prediction_type is {says!r}, got {prediction_type!r}; leave it out")

    with torch.device("meta"):  # shapes and names only, no memory
        unet = UNet(checkpoint.unet_config)
        vae = VAE(checkpoint.vae_config)
        text_encoder = TextEncoder(checkpoint.text_config)
    parts = ((unet, checkpoint.unet), (vae, checkpoint.vae), (text_encoder, checkpoint.text_encoder))
    for (module, stored), name in zip(parts, sources.WEIGHTS, strict=True):
        check(module, stored, f"{source}, {name},")
    _check_fit(checkpoint)
    tokens = _tokenizer(checkpoint.tokenizer, checkpoint.text_config.vocab_size)

    for module, stored in parts:
        fill(module, stored, device, torch.promote_types(dtype, torch.float32) if module is vae else dtype)
    if compile:
        unet.compile()
    return StableDiffusion(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokens,
        alphas_cumprod=checkpoint.scheduler_config.alphas_cumprod(),
        prediction_type=says,
        image_size=checkpoint.unet_config.sample_size * checkpoint.vae_config.factor,
        device=device,
        dtype=dtype,
        source=str(source),
        revision=commit,
        files=checkpoint.files,
    )


def find_device(device: str | torch.device | None) -> torch.device:
    """The device of that name, or for None the best one here: cuda, else mps, else cpu. Raises ValueError for a name
    that is unknown and for a device that is not here or cannot hold values."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.ones(1, device=device).item()  # there and back: the meta device takes values and returns none
        found = torch.device(device)
    except Exception as error:  # torch's backends share no exception for a device that they do not have
        if out_of_memory(error):  # the device is here, and full
            raise
        cause = one_line((str(error).splitlines() or [type(error).__name__])[0], 120)
        known = "expected cpu, cuda, cuda:N or mps"
        raise ValueError(
            f"device {shown(device)} cannot be had ({cause}); {known}, or leave it out for the best"
        ) from error
    if found.type == "cpu" and found.index not in (None, 0):  # torch takes any number for the one CPU
        raise ValueError(f"device {shown(device)} cannot be had (there is one cpu); name cpu, or leave it out")
    return found


def _check_fit(checkpoint: sources.Checkpoint):
    """Each config may be sound and still belong to another model than its neighbours."""
    unet, vae, text = checkpoint.unet_config, checkpoint.vae_config, checkpoint.text_config
    if unet.cross_attention_dim != text.hidden_size:
        raise ConfigError(
            f"the UNet expects contexts {unet.cross_attention_dim} wide (cross_attention_dim), the text encoder makes "
            f"them {text.hidden_size} wide (hidden_size); the folders come from different models"
        )
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        raise ConfigError(
            f"the UNet maps {unet.in_channels} channels to {unet.out_channels}, the VAE's latents have "
            f"{vae.latent_channels}; inpainting and depth models of this family are not supported"
        )


def _tokenizer(folder: Path, vocabulary: int) -> CLIPTokenizer:
    from transformers import CLIPTokenizer  # imported here, as that takes longer than loading a small model

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizer's exceptions share no base class
        raise CheckpointError(f"the tokenizer in {folder} cannot be read: {one_line(str(error))}") from error
    if len(tokenizer) > vocabulary:
        raise CheckpointError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the text encoder knows {vocabulary}; "
            "they belong to different models"
        )
    if tokenizer.pad_token is None:
        raise CheckpointError(f"the tokenizer in {folder} names no pad_token; add it to its tokenizer_config.json")
    return tokenizer
