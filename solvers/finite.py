"""This module holds the one check for numbers that have left what their dtype holds. It stands apart because every
iteration needs it, and knows nothing of what it checks.
"""

import torch
from torch import Tensor

ADVICE = "lower the guidance scale or start, and if the network runs in float16, run it in bfloat16 or float32"


def check_finite(values: Tensor, what: str, advice: str = ADVICE) -> Tensor:
    """The values themselves. FloatingPointError, naming what they are and their dtype, unless all are finite."""
    if not torch.isfinite(values).all():
        dtype = str(values.dtype).removeprefix("torch.")
        raise FloatingPointError(f"{what} is not finite (nan or inf), in {dtype}: {advice}")
    return values
