"""This module draws samples by arithmetic, and repeats, step by step, what the model double makes of them. The tests of
the methods share it."""

import numpy as np
import torch

from composition import Sample, Scan, Settings, compose
from composition.canvas import from_canvas, to_canvas, to_latent_mask
from composition.inversions import invert_latents
from composition.placement import place
from solvers import Grid, NoiseSchedule, StepTable

TOKEN = 7788  # the exceptional prompt's token in the double's vocabulary


def scan(height, width, seed, dtype=np.uint8):
    """Long waves and a little noise, over the whole range of the dtype."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    values = np.sin(x / 17 + seed) + np.cos(y / 13 + 2 * seed) + 0.1 * rng.standard_normal((height, width))
    values = (values - values.min()) / (values.max() - values.min())
    return Scan(np.rint(values * np.iinfo(dtype).max).astype(dtype))


def box(shape, x, y, width, height):
    mask = np.zeros(shape, dtype=bool)
    mask[y : y + height, x : x + width] = True
    return mask


def sample(height=120, width=160, seed=0, prompt="a lesion"):
    user_mask = box((height, width), 40, 30, 60, 50)
    return Sample(scan(height, width, seed), scan(90, 90, seed + 1), box((90, 90), 20, 25, 40, 40), user_mask, prompt)


def run(model, one: Sample, settings: Settings | None = None, **keywords):
    return compose(model, *one, settings, **keywords)


def run_of(model, settings: Settings) -> tuple[Grid, StepTable]:
    """The grid of a composition and the table on it."""
    grid = settings.build_grid(NoiseSchedule.from_alphas_cumprod(model.alphas_cumprod))
    return grid, settings.build_table(grid)


def inverted(model, latents: torch.Tensor, settings: Settings, until: int) -> list[torch.Tensor]:
    """The states x[0..until] of each of the latents, as a composition inverts them."""
    grid, _ = run_of(model, settings)
    names = [f"image {number}" for number in range(len(latents))]
    until = grid.until(until)
    trajectories = invert_latents(model, latents, TOKEN, settings, until, settings.build_table, images=names)
    return [trajectory.states for trajectory in trajectories]


def latents(model, one: Sample):
    """Background, placed object and pasted image as latents (3, C, h, w), M_obj and M_user, of a 128-pixel sample."""
    placement = place(one.background, one.obj, one.object_mask, one.user_mask)
    pasted = np.where(placement.object_mask[..., None], placement.image, one.background.values())
    images = [to_canvas(values, (128, 128)) for values in (one.background.values(), placement.image, pasted)]
    grids = [to_latent_mask(mask, (16, 16)) for mask in (placement.object_mask, placement.user_mask)]
    return model.encode(torch.stack(images)), *grids


def rendered(model, one: Sample, latent: torch.Tensor) -> np.ndarray:
    return one.background.render(from_canvas(model.decode(latent[None])[0], (128, 128)), grayscale=True)


def data(model, grid, x, i, context):
    """x0 of one state (C, h, w) under one context (1, 77, 1)."""
    noise = model.unet(x[None], grid.t[i : i + 1], context)[0]
    return (x - grid.sigma[i].float() * noise) / grid.alpha[i].float()


def guided_data(model, grid, x, i, prompt, scale):
    text, null = (data(model, grid, x, i, model.embed([words])) for words in (prompt, ""))
    return null + scale * (text - null)


def stepped(table: StepTable, i: int, x, predictions: list):
    """x[i-1] by the table's row; predictions: D[i], D[i+1], ..., as many as there are."""
    a, weights = table.row(i)
    terms = [weight * of for weight, of in zip(weights, predictions, strict=False) if weight]
    return (a * x + sum(terms)).float()
