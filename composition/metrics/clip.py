"""Cosines in the embedding space of CLIP (Radford et al., ICML 2021), as hundredths: 100 for one direction."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .lpips import WeightsError

# The paper does not say which CLIP it used. This is the one that most publications' "CLIP score" means.
SOURCE = "openai/clip-vit-base-patch32"
# CLIP's own preprocessing: mean and deviation per channel of images in [0, 1].
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class CLIP:
    """A CLIP of the transformers library. `name` belongs beside its figures.

    source: a folder in the transformers layout, or a hub id. Raises WeightsError where it is absent or unusable.
    """

    def __init__(self, source: str = SOURCE, *, device: torch.device | str = "cpu", local_files_only: bool = False):
        from transformers import CLIPModel, CLIPTokenizer

        self.name, self.device = f"CLIP ({source})", torch.device(device)
        try:
            self.model = CLIPModel.from_pretrained(source, local_files_only=local_files_only).to(self.device).eval()
            self.tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=local_files_only)
        except (OSError, ValueError) as error:
            raise WeightsError(f"no CLIP model from {source}: {error}") from error

    @torch.no_grad()
    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, D) of images (B, 3, H, W) in [-1, 1].

        The whole image is brought to CLIP's square, bicubic; CLIP's own preprocessing would crop a scan's long side.
        """
        side = self.model.config.vision_config.image_size
        square = F.interpolate(images.to(self.device).float(), (side, side), mode="bicubic", antialias=True).clamp(
            -1, 1
        )
        mean, deviation = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
        pooled = self.model.vision_model((square / 2 + 0.5 - mean) / deviation).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=1)

    @torch.no_grad()
    def embed_texts(self, prompts: list[str]) -> torch.Tensor:
        """Unit vectors (B, D); a prompt beyond CLIP's 77 tokens is cut there."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        pooled = self.model.text_model(**tokens.to(self.device)).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=1)

    def image_similarity(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """100 times the cosine of two images each, (B,)."""
        return 100 * (self.embed_images(a) * self.embed_images(b)).sum(dim=1)

    def text_similarity(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """100 times the cosine of every image and its prompt, (B,)."""
        return 100 * (self.embed_images(images) * self.embed_texts(prompts)).sum(dim=1)
