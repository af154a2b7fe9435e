"""Muon is the training's optimizer for hidden layers. These tests check its steps and what it learns."""

import pytest
import torch
from torch import nn

from sd21.training.muon import ADAMW_RMS, Muon, is_hidden, optimizers, orthogonalized


def matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (16, 144)])
def test_orthogonalized_keeps_the_singular_vectors_and_evens_out_the_values(shape):
    u, values, v = torch.linalg.svd(matrix(*shape), full_matrices=False)
    given = u @ torch.logspace(0, -1.5, len(values)).diag() @ v
    core = u.T @ orthogonalized(given) @ v.T  # diagonal if it were exact
    # Five rounds of the quintic leave singular values in about 0.7 to 1.2.
    assert 0.6 < core.diagonal().min() and core.diagonal().max() < 1.3
    # float32 (1e-7) through a few dozen products, on Gram entries as small as the square of the least value, 1e-3.
    assert (core - core.diagonal().diag()).abs().max() < 1e-3


def test_a_step_of_a_kernel_is_that_of_its_matrix():
    kernel = nn.Parameter(matrix(8, 36).view(8, 4, 3, 3).to(memory_format=torch.channels_last))
    flat = nn.Parameter(matrix(8, 36))
    for weight in (kernel, flat):
        weight.grad = matrix(36, 8).T.reshape(weight.shape)
        Muon([weight], lr=0.1).step()
    assert torch.equal(kernel.detach().reshape(8, 36), flat.detach())


def test_the_step_has_the_size_of_adamw():
    weight = nn.Parameter(torch.zeros(32, 64))
    weight.grad = matrix(32, 64)
    Muon([weight], lr=0.1).step()
    # Singular values of 0.7 to 1.2 in place of 1.
    assert weight.square().mean().sqrt().item() == pytest.approx(0.1 * ADAMW_RMS, rel=0.3)


def test_muon_learns_a_badly_scaled_linear_map():
    inputs = matrix(256, 16) * torch.logspace(0, -2, 16)
    target, layer = inputs @ matrix(16, 8), nn.Linear(16, 8, bias=False)
    optimizer = Muon([layer.weight], lr=0.5, weight_decay=0.0)
    losses = []
    for step in range(100):
        loss = (layer(inputs) - target).square().mean()
        layer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.5 * (1 - step / 100)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.01 * losses[0]


def test_ends_embeddings_and_vectors_go_to_adamw():
    weights = {
        "conv_in.weight": 4,
        "mid.conv1.weight": 4,
        "mid.conv1.bias": 1,
        "embeddings.token.weight": 2,
        "q.weight": 2,
    }
    chosen = [name for name, ndim in weights.items() if is_hidden(name, torch.zeros((1,) * ndim))]
    assert chosen == ["mid.conv1.weight", "q.weight"]
    layers = nn.ModuleDict({"conv_in": nn.Conv2d(3, 4, 3), "conv1": nn.Conv2d(4, 4, 3)})
    found = optimizers(layers, 1e-3)
    assert found["muon"].param_groups[0]["params"] == [layers["conv1"].weight]
    assert len(found["adamw"].param_groups[0]["params"]) == 3
