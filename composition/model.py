"""This module says what the method asks of a model. The other modules name the protocol in their signatures.

`sd21.load` returns such a model. The protocol stands apart from `sd21`, so that another network, or a double in a test,
can take its place without being a Stable Diffusion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class TextEncoder(Protocol):
    """config.vocab_size: the number of token ids."""

    config: Any

    def __call__(self, ids: Tensor, position_embedding: bool = True) -> Tensor:
        """Token ids (B, 77) int64 -> context (B, 77, D)."""


class Model(Protocol):
    """A latent diffusion model: an autoencoder, a text tower, and a network that predicts noise.

    unet: x (B, C, h, w), t (B,) float64 on the CPU, context (B or 1, L, D) -> eps or v, as `prediction_type`
        ("epsilon" or "v_prediction") says. Where it has a `hook_slot` (sd21.attention), hooks reach its attention; a
        function around such a network has to have its slot too.
    vae: vae.config.factor is the number of pixels along each side of a latent cell.
    tokenizer: of the transformers library; `prompts.token_positions` alone asks for it.
    alphas_cumprod: alpha² at the training times, (N,) float64, on the CPU.
    image_size: pixels along each side of the images that the network was trained on.
    identity: what tells this model from others, as plain JSON: kept inversions are of the model with this identity, so
        that whoever replaces a part of a model must change it.
    """

    unet: Callable[[Tensor, Tensor, Tensor], Tensor]
    vae: Any
    text_encoder: TextEncoder
    tokenizer: Any
    alphas_cumprod: Tensor
    prediction_type: str
    image_size: int
    device: torch.device
    dtype: torch.dtype
    identity: dict

    def encode(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> latents (B, C, H / factor, W / factor)."""

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, h * factor, w * factor), about [-1, 1]."""

    def embed(self, prompts: list[str]) -> Tensor:
        """B texts -> contexts (B, 77, D)."""
