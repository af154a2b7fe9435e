"""This module holds Muon, the optimizer of the hidden layers' weights. It takes the momentum of a weight as a matrix
and makes that matrix nearly orthogonal. We do not use torch.optim.Muon: it takes no convolutions, and it is younger
than the oldest torch we run on.

The method is from Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". The size of a step is
from Liu et al. 2025, "Muon is scalable for LLM training", Eq. 4, so that one learning rate serves these weights and
AdamW's.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

# Jordan's odd quintic: singular values between about 1e-3 and 1 come out between about 0.7 and 1.2 in five rounds.
QUINTIC = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
WEIGHT_DECAY = 0.01  # of both optimizers
ADAMW_RMS = 0.2  # root mean square of a step divided by the learning rate, typical of AdamW's steps


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices (..., m, n) with their singular values brought near 1, by Newton-Schulz iteration.

    Every round multiplies by a polynomial in the Gram matrix (m, m). These polynomials commute, so the rounds work on
    the Gram matrix alone and their product is applied once. This is faster because a kernel is several times wider than
    tall.
    """
    a, b, c = QUINTIC
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if tall := x.shape[-2] > x.shape[-1]:
        x = x.mT  # for the smaller Gram matrix; the result is the same
    gram, one = x @ x.mT, torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    product = one
    for _ in range(ROUNDS):
        factor = a * one + b * gram + c * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor
    x = product @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """An optimizer of weights of two or more dimensions; a kernel (out, in, 3, 3) counts as a matrix (out, in * 9)."""

    def __init__(self, parameters: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = WEIGHT_DECAY):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Take one step down the gradients. Weights without a gradient stay as they are."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            # These are many small kernels, so matrices of one shape go through the rounds together.
            alike = defaultdict(list)
            for weight in weights:
                alike[weight.shape[0], weight[0].numel()].append(weight)
            for (rows, columns), some in alike.items():
                ahead = torch.stack([self._ahead(weight, group["momentum"]).flatten(1) for weight in some])
                size = group["lr"] * ADAMW_RMS * max(rows, columns) ** 0.5
                for weight, direction in zip(some, orthogonalized(ahead) * size, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(direction.view(weight.shape))

    def _ahead(self, weight: Tensor, momentum: float) -> Tensor:
        """Nesterov's look ahead, from the gradient and its average, which this updates."""
        state = self.state[weight]
        if not state:
            state["average"] = torch.zeros_like(weight)
        average = state["average"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(average, momentum)


def is_hidden(name: str, weight: Tensor) -> bool:
    """Whether Muon is for this weight: a matrix or kernel, and neither an embedding nor a first or last layer."""
    ends = ("conv_in", "conv_out", "quant_conv", "embeddings")
    return weight.ndim >= 2 and not any(end in name for end in ends)


def optimizers(model: nn.Module, lr: float) -> dict[str, torch.optim.Optimizer]:
    """Muon for the hidden layers' weights, AdamW for all others."""
    hidden, others = [], []
    for name, weight in model.named_parameters():
        (hidden if is_hidden(name, weight) else others).append(weight)
    # A step that is recorded as a CUDA graph reads its learning rate, and counts its steps, in the GPU's memory.
    on_gpu = others[0].is_cuda
    rate = torch.tensor(lr, device=others[0].device) if on_gpu else lr
    adamw = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=WEIGHT_DECAY, capturable=on_gpu)
    return {"muon": Muon(hidden, lr), "adamw": adamw}
