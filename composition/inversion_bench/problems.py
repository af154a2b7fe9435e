"""This module makes the problems of the bench: real scans and samples of the model itself, at every prompt, scale and
start.

A generated scan is the end of a run of the unmodified sampler from x[start] alone, so that a preimage exists and every
state of it is known. That x[start] is a state of a run from noise, under the same prompt and guidance. A real scan may
have no preimage at all, so that the two are kept apart everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from solvers import Grid, NoiseSchedule, Solver, sample
from solvers.prediction import X0Fn, data_prediction

from ..canvas import latents_of
from ..model import Model
from ..prompts import exceptional_context, null_context, text_context
from .choices import Choices
from .editing import Swap
from .measure import Problem
from .scans import Chosen, digest_of

PROMPTS = ("exceptional", "null", "text")
REAL, GENERATED = "real", "generated"


@dataclass(frozen=True, eq=False)
class Item:
    """One problem before it is made. chosen: the real scan; None for a generated one. number: within its source. text:
    what the prompt "text" is. other: the text of the swap, None where it would be the prompt itself or is unknown."""

    chosen: Chosen | None
    number: int
    prompt: str
    scale: float
    start: int
    text: str | None
    other: str | None

    @property
    def group(self) -> str:
        return GENERATED if self.chosen is None else REAL

    @property
    def source(self) -> str:
        return GENERATED if self.chosen is None else self.chosen.source

    @property
    def identity(self) -> dict:
        """What the results and the tables know it by."""
        return {
            "group": self.group,
            "source": self.source,
            "number": self.number,
            "scan": f"sample {self.number}" if self.chosen is None else self.chosen.name,
            "tumour": self.chosen is not None and self.chosen.mask is not None,
            "prompt": self.prompt,
            "scale": self.scale,
            "start": self.start,
        }

    @property
    def place(self) -> str:
        """The folder of its cells."""
        return f"{self.source}-{self.number:04d}/{self.prompt}-scale{self.scale:g}-start{self.start}"


def items_of(
    chosen: Sequence[Chosen],
    generated: int,
    prompts: Sequence[str],
    scales: Sequence[float],
    starts: Sequence[int],
    text: str | None,
    swap: str | None,
) -> list[Item]:
    """All problems, scan by scan. text, swap: as asked for; None takes the text that fits the scan for either.

    Guidance between the null prompt and itself changes nothing, so the null prompt has the scale 1 alone.
    """
    texts = list(dict.fromkeys(one.text for one in chosen)) or [text]
    scans = [(one, one.number, one.text) for one in chosen]
    scans += [(None, number, text or texts[number % len(texts)]) for number in range(generated)]
    return [
        Item(
            one,
            number,
            prompt,
            scale,
            start,
            fits,
            None if prompt == "text" and (swap or fits) == fits else swap or fits,
        )
        for one, number, fits in scans
        for prompt in prompts
        for scale in scales
        for start in starts
        if prompt != "null" or scale == 1
    ]


class Maker:
    """Makes problems with one model, whose contexts it makes once."""

    def __init__(self, model: Model, choices: Choices):
        self.model, self.choices = model, choices
        settings = choices.settings()
        self.solver: Solver = settings.build_table
        self.grid: Grid = settings.build_grid(NoiseSchedule.from_alphas_cumprod(model.alphas_cumprod))
        self._contexts: dict[tuple, Tensor] = {}

    def asked(self, item: Item) -> dict:
        """What a cell depends on of the item beside its identity. Raises ScanError for a scan that cannot be read."""
        told = {"text": item.text if item.prompt == "text" else None, "swap": item.other}
        if item.chosen is None:
            return {**told, "scan_sha256": None, "seed": self.choices.seed}
        return {**told, "scan_sha256": digest_of(item.chosen.read(), item.chosen.mask), "seed": None}

    def make(self, item: Item) -> Problem:
        """Raises ScanError for a scan that cannot be read, FloatingPointError for latents that are not finite."""
        run = self.grid.until(item.start)
        x0_fn = self._prediction(item.prompt, item.text, item.scale)
        if item.chosen is None:
            x0, truth = self._generated(item, run, x0_fn)
        else:
            x0, truth = latents_of(self.model, item.chosen.read()), None
        swap = None
        if item.other is not None:
            other = self._prediction("text", item.other, self.choices.swap_scale)
            mask = None if item.chosen is None else item.chosen.mask
            swap = Swap(self.model, x0, run, self.solver, other, mask)
        return Problem(x0, run, self.solver, x0_fn, item.start == self.grid.steps, truth, swap)

    def _prediction(self, prompt: str, text: str | None, scale: float) -> X0Fn:
        guided = scale != 1
        return data_prediction(
            self.model.unet,
            self.grid,
            self.model.prediction_type,
            self._context(prompt, text, guided),
            null_context=self._context("null", None, guided) if guided else None,
            scale=scale,
            max_batch=self.choices.max_batch,
        )

    def _context(self, prompt: str, text: str | None, guided: bool) -> Tensor:
        """A prompt's context. Unguided, one row stands for the equal 77 of the exceptional prompt, as in compositions;
        guided, it has as many as the null prompt."""
        key = (prompt, text if prompt == "text" else None, guided)
        if key not in self._contexts:
            if prompt == "exceptional":
                made = text_context(self.model, None) if guided else exceptional_context(self.model)
            else:
                made = null_context(self.model) if prompt == "null" else text_context(self.model, text)
            self._contexts[key] = made
        return self._contexts[key]

    @cached_property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of the images that the network was trained on."""
        side = self.model.image_size
        with torch.no_grad():
            return tuple(self.model.encode(torch.zeros(1, 3, side, side, device=self.model.device)).shape[1:])

    def _generated(self, item: Item, run: Grid, x0_fn: X0Fn) -> tuple[Tensor, Tensor]:
        """x0 (1, C, h, w), and the states x[1..start] of the run that ends there."""
        generator = torch.Generator().manual_seed(self.choices.seed + item.number)
        noise = torch.randn(1, *self.latent_shape, generator=generator)
        dtype = torch.float64 if self.model.dtype == torch.float64 else torch.float32
        x = noise.to(self.model.device, dtype)
        whole = sample(x, self.grid, self.solver(self.grid), x0_fn)
        begin = next(state for i, state, _ in whole if i == item.start)
        states = [state for _, state, _ in sample(begin, run, self.solver(run), x0_fn)]
        return states[-1], torch.cat(states[-2::-1])
