"""This module compares images and texts by the cosine in the embedding space of CLIP (Radford et al., ICML 2021), as
hundredths: 100 means the same direction. It is apart because it needs the transformers library."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F

from ..scans.errors import WeightsError
from .lpips import DIGITS
from .resize import square

# CLIP's own preprocessing: mean and deviation per channel of images in [0, 1].
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BYTES = 256  # CLIP's vocabulary has each byte twice, alone and at a word's end
TOLD = 3  # an error names so many weights that do not fit; nobody would read all 398


class CLIP:
    """A CLIP of the transformers library. `name` identifies its weights by their SHA-256; print it beside its figures.

    source: a folder in the transformers layout, or a hub id. It must hold all weights of a CLIPModel; further tensors
    are ignored, because older files also carry buffers. Raises WeightsError if it is absent or anything else.
    """

    def __init__(self, source: str, *, device: torch.device | str = "cpu", local_files_only: bool = False):
        model, self.tokenizer = _load(source, local_files_only)
        model = model.float().eval()  # transformers 5 keeps half precision, 4 does not
        self.name, self.device = f"CLIP ({source}; weights {_digest(model)})", torch.device(device)
        self.model = model.to(self.device)

    @torch.no_grad()
    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, D) of images (B, 3, H, W) in [-1, 1].

        The whole image is resized to CLIP's square (bicubic); CLIP's own preprocessing would crop a scan's long side.
        """
        side = self.model.config.vision_config.image_size
        mean, deviation = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
        pixels = square(images.to(self.device), side) / 2 + 0.5
        pooled = self.model.vision_model((pixels - mean) / deviation).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=1)

    @torch.no_grad()
    def embed_texts(self, prompts: list[str]) -> torch.Tensor:
        """Unit vectors (B, D); a prompt beyond CLIP's 77 tokens is cut there."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        pooled = self.model.text_model(**tokens.to(self.device)).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=1)

    def image_similarity(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """100 times the cosine of each image of `a` with its partner in `b`, (B,)."""
        return 100 * (self.embed_images(a) * self.embed_images(b)).sum(dim=1)

    def text_similarity(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """100 times the cosine of every image and its prompt, (B,)."""
        return 100 * (self.embed_images(images) * self.embed_texts(prompts)).sum(dim=1)


def _digest(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(weight.detach().numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def _load(source: str, local_files_only: bool):
    """The model and tokenizer of transformers. Raises WeightsError for whatever does not make a whole CLIP."""
    from transformers import CLIPModel, CLIPTokenizer

    def unusable(reason: str) -> WeightsError:
        advice = "download it anew, or name a whole CLIP in the transformers layout"
        return WeightsError(f"no CLIP model from {source}: {reason.strip()}; {advice}")

    try:
        # transformers draws missing and misshapen weights at random, and says so only in its report.
        model, report = CLIPModel.from_pretrained(
            source, local_files_only=local_files_only, output_loading_info=True, ignore_mismatched_sizes=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=local_files_only)
    except Exception as error:  # the errors of safetensors and the tokenizers share no base class
        raise unusable(f"{type(error).__name__}: {error}") from error
    wrong = [f"{key} is missing" for key in sorted(report["missing_keys"])]
    wrong += [f"{key} is {tuple(got)}, not {tuple(fit)}" for key, got, fit in sorted(report["mismatched_keys"])]
    if wrong:
        more = f"; and {len(wrong) - TOLD} more" if len(wrong) > TOLD else ""
        raise unusable("; ".join(wrong[:TOLD]) + more)
    # If the vocabulary's files are missing, transformers makes a tokenizer that knows no word.
    least, most = 2 * BYTES, model.config.text_config.vocab_size
    if not least <= len(tokenizer) <= most:
        raise unusable(f"its tokenizer has {len(tokenizer)} tokens, expected {least} to {most}")
    return model, tokenizer
