"""This module holds the text tower of Stable Diffusion 2.1: the first 23 layers of OpenCLIP ViT-H, causal, with a final
layer norm. It turns token ids into contexts, and shares no layer with the UNet and the VAE.

Attribute names are the keys of the published `text_encoder/model.safetensors`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import TextConfig


class SelfAttention(nn.Module):
    """Causal self-attention: a token attends to itself and to the tokens before it."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # (B, T, dim)


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int, act: str):
        super().__init__()
        self.act = act
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        # quick_gelu is an approximation. OpenAI trained its CLIP weights with it, OpenCLIP did not.
        h = F.gelu(h) if self.act == "gelu" else h * torch.sigmoid(1.702 * h)
        return self.fc2(h)


class Layer(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        dim, eps = config.hidden_size, config.layer_norm_eps
        self.layer_norm1 = nn.LayerNorm(dim, eps)
        self.self_attn = SelfAttention(dim, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(dim, eps)
        self.mlp = MLP(dim, config.intermediate_size, config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextModel(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "token_embedding": nn.Embedding(config.vocab_size, config.hidden_size),
                "position_embedding": nn.Embedding(config.max_position_embeddings, config.hidden_size),
            }
        )
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))})
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, ids: Tensor, position_embedding: bool) -> Tensor:
        x = self.embeddings["token_embedding"](ids)  # (B, T, dim)
        if position_embedding:
            x = x + self.embeddings["position_embedding"].weight
        for layer in self.encoder["layers"]:
            x = layer(x)
        return self.final_layer_norm(x)


class TextEncoder(nn.Module):
    """`encoder(ids)`: token ids (B, 77) int64 -> context (B, 77, hidden_size), the last layer after the final norm.

    `position_embedding=False` leaves positions out, as the exceptional prompt of TF-ICON does. Raises ValueError for
    another shape, another dtype, or an id that is not in the vocabulary.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.text_model = TextModel(config)

    def forward(self, ids: Tensor, position_embedding: bool = True) -> Tensor:
        length, vocab = self.config.max_position_embeddings, self.config.vocab_size
        if ids.ndim != 2 or ids.shape[1] != length or ids.dtype != torch.int64:
            raise ValueError(f"ids must be int64 (B, {length}), got {tuple(ids.shape)} {ids.dtype}; pad or truncate")
        if ids.numel() > 0 and not (0 <= ids.min() and ids.max() < vocab):
            raise ValueError(f"ids must lie in [0, {vocab}), got [{ids.min()}, {ids.max()}]")
        return self.text_model(ids, position_embedding)
