"""This module says how far a result is from what was expected, relative to its size. Tests of networks and of solvers
and the benchmarks share it."""

from torch import Tensor


def relative(got: Tensor, expected: Tensor) -> float:
    """|got - expected| / |expected| over the whole tensors, in float64."""
    return relative_by_image(got[None], expected[None]).item()


def relative_by_image(got: Tensor, expected: Tensor) -> Tensor:
    """|got - expected| / |expected| of every image of a batch (B, ...); (B,) float64."""
    got, expected = got.double().flatten(1), expected.double().flatten(1)
    return (got - expected).norm(dim=1) / expected.norm(dim=1)
