"""This module holds a stand-in for the object that sd21.load returns. Many tests share it, because the method can be
checked on it to the last digit.

Its VAE averages 8x8 blocks and repeats them. Its UNet is the exact, linear denoiser of Gaussian data whose mean follows
the context. So scans survive encoding and decoding up to blur, and no trained weights are needed.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from analytic_models import SD_BETAS

FACTOR = 8


class FakeModel:
    """image_size: pixels. spread: standard deviation of the Gaussian data. pull: how far a context moves its mean."""

    device, dtype, prediction_type = torch.device("cpu"), torch.float32, "epsilon"
    vae = SimpleNamespace(config=SimpleNamespace(factor=FACTOR))
    identity = {"source": "fake", "revision": None, "files": {}}  # noqa: RUF012

    def __init__(self, image_size: int = 128, spread: float = 0.5, pull: float = 0.02, vocabulary: int = 49408):
        self.alphas_cumprod = (1 - SD_BETAS).cumprod(0)
        self.image_size, self.spread, self.pull = image_size, spread, pull
        self.text_encoder = TextDouble(vocabulary)
        self.rows = 0

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        blocks = F.avg_pool2d(image, FACTOR)
        return torch.cat([blocks, blocks.mean(dim=1, keepdim=True)], dim=1)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        return F.interpolate(latent[:, :3], scale_factor=FACTOR, mode="nearest")

    def embed(self, prompts: list[str]) -> torch.Tensor:
        return torch.stack([self.text_encoder.embed(sum(prompt.encode()) % 997) for prompt in prompts])

    def unet(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        assert len(x) == len(t) == len(context)
        self.rows += len(x)
        log_alpha = self.alphas_cumprod.log() / 2
        low = t.floor().long().clamp(0, 998)
        alpha = torch.lerp(log_alpha[low], log_alpha[low + 1], t.double() - low).exp().view(-1, 1, 1, 1)
        variance, sigma = self.spread**2, (1 - alpha**2).sqrt()
        mean = self.pull * context.double().mean(dim=(1, 2)).view(-1, 1, 1, 1)
        x0 = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
        return ((x - alpha * x0) / sigma).to(x.dtype)


class TextDouble:
    """Contexts with one entry, a number between -1 and 1 that is computed from the token."""

    def __init__(self, vocabulary: int):
        self.config = SimpleNamespace(vocab_size=vocabulary)

    def embed(self, token: int) -> torch.Tensor:
        return torch.full((77, 1), (token % 201) / 100 - 1)

    def __call__(self, ids: torch.Tensor, position_embedding: bool = True) -> torch.Tensor:
        assert ids.shape == (1, 77) and not position_embedding
        return torch.stack([self.embed(int(row[0])) for row in ids])
