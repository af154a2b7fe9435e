"""This module holds the stage "diffusion", which trains the UNet and the text tower together on the latents to predict
eps.

The loss is the unweighted one of Ho et al. 2020, Eq. 14. Training in latents and with text follows Rombach et al. 2022.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import SchedulerConfig, TextConfig, UNetConfig
from ..text import TextEncoder
from ..unet import UNet
from . import data, recipe
from .loop import Plan, autocast, compile_on_gpu, load, normal, sound, train
from .tokenizer import CONTEXT_LENGTH, END, PAD, START, write_tokenizer

NULL_SHARE = 0.1  # this share of the samples has the empty prompt, which guidance needs (Ho and Salimans 2022)
TOKENIZER_FOLDER = "tokenizer"


class Denoiser(nn.Module):
    """UNet and text tower with random weights."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.unet = UNet(UNetConfig.from_dict(recipe.UNET))
        self.text_encoder = TextEncoder(TextConfig.from_dict(recipe.TEXT | {"vocab_size": vocabulary}))
        for embedding in self.text_encoder.text_model.embeddings.values():
            nn.init.normal_(embedding.weight, std=0.02)  # as in CLIP; torch's default of 1 drowns what the layers add
        nn.init.zeros_(self.unet.conv_out.weight)  # the first guess is eps = 0

    def forward(self, x: Tensor, t: Tensor, prompts: Tensor, which: Tensor) -> Tensor:
        """x (B, 4, h, w), t (B,), distinct prompts as ids (P, 77), and which of them each row has (B,) -> eps."""
        # Past the encoder's own check of the ids, which would make a GPU wait.
        return self.unet(x, t, self.text_encoder.text_model(prompts, True)[which])


class EpsLoss:
    """Mean squared error of eps at x = alpha[t] x0 + sigma[t] noise."""

    def __init__(self, prompts: Tensor, device: torch.device):
        alphas_cumprod = SchedulerConfig.from_dict(recipe.SCHEDULER).alphas_cumprod()
        self.alpha = alphas_cumprod.sqrt().float().to(device)
        self.sigma = (1 - alphas_cumprod).sqrt().float().to(device)
        self.prompts = prompts.to(device)

    def __call__(self, model: Denoiser, x0: Tensor, which: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x0 and noise (B, 4, h, w), which and t (B,), all on one device -> (B,)."""
        x = self.alpha[t].view(-1, 1, 1, 1) * x0 + self.sigma[t].view(-1, 1, 1, 1) * noise
        with autocast(x0.device):
            eps = model(x, t, self.prompts, which)
        return (eps - noise).square().flatten(1).mean(1)


def token_ids(vocabulary: dict[str, int], captions: list[str]) -> Tensor:
    """The ids (N, 77) of captions. Each word must be one token of the vocabulary, as in every training caption."""
    ids = torch.full((len(captions), CONTEXT_LENGTH), vocabulary[PAD])
    for row, caption in zip(ids, captions, strict=True):
        words = [vocabulary[START], *(vocabulary[word + "</w>"] for word in caption.lower().split()), vocabulary[END]]
        row[: len(words)] = torch.tensor(words)
    return ids


def train_diffusion(scans: str | Path, out: Path, plan: Plan, device: torch.device) -> Denoiser:
    """Start or continue training OUT/diffusion.pt on OUT/latents.pt; write OUT/tokenizer. Returns the average model."""
    training, held_out = data.split(data.find_scans(scans))
    latents = load(out / "latents.pt", ["training", "held_out"], "the stage latents", device)
    with sound(out / "latents.pt", "the stage latents"):
        found = latents["training"].shape[0], latents["held_out"].shape[0]
    if (len(training), len(held_out)) != found:
        raise ValueError(f"{out}/latents.pt is of other scans than {scans}; run the stage latents again")
    weights = data.sampling_weights(training)
    variants = latents["training"].shape[1]

    captions = [caption for kind in data.KINDS for caption in data.CAPTIONS[kind]]
    phrasings = len(captions) // len(data.KINDS)
    vocabulary = write_tokenizer(out / TOKENIZER_FOLDER, captions)
    eps_loss = EpsLoss(token_ids(vocabulary, ["", *captions]), device)

    def first_prompt(scans: list[data.Scan]) -> Tensor:
        return torch.tensor([1 + phrasings * data.KINDS.index(scan.kind) for scan in scans])

    prompt = first_prompt(training)

    def draw(generator: torch.Generator) -> tuple[Tensor, ...]:
        batch = torch.multinomial(weights, plan.batch, replacement=True, generator=generator)
        variant, phrasing, t = (
            torch.randint(high, batch.shape, generator=generator) for high in (variants, phrasings, len(eps_loss.alpha))
        )
        null = torch.rand(batch.shape, generator=generator) < NULL_SHARE
        which = torch.where(null, 0, prompt[batch] + phrasing)
        x0 = latents["training"][batch.to(device), variant.to(device)].float()
        return x0, which.to(device), t.to(device), normal(x0.shape, device, generator)

    def loss(model: Denoiser, *batch: Tensor) -> Tensor:
        return eps_loss(model, *batch).mean()

    # Every validation has the same times, noises and prompts, so that its figures can be compared.
    generator = torch.Generator().manual_seed(plan.seed)
    clean = latents["held_out"].float()
    order = torch.randperm(len(clean), generator=generator)
    times = torch.linspace(0, len(eps_loss.alpha) - 1, len(clean)).long()[order]
    noise = torch.randn(clean.shape, generator=generator)
    fixed = (clean, *(tensor.to(device) for tensor in (first_prompt(held_out), times, noise)))

    def validate(model: Denoiser) -> dict[str, float]:
        losses = [eps_loss(model, *part) for part in zip(*(tensor.split(64) for tensor in fixed), strict=True)]
        return {"held_out_loss": torch.cat(losses).mean().item()}

    torch.manual_seed(plan.seed)
    model = Denoiser(len(vocabulary)).to(device, memory_format=torch.channels_last)
    compile_on_gpu(model)
    return train(model, draw, loss, validate, plan, out / "diffusion.pt")
