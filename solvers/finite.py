"""This module holds the one check for numbers that have left what their dtype holds. It stands apart because every
iteration needs it, and knows nothing of what it checks.
"""

import torch
from torch import Tensor


def check_finite(values: Tensor, what: str) -> Tensor:
    """The values themselves. FloatingPointError, naming what they are, unless all are finite."""
    if not torch.isfinite(values).all():
        raise FloatingPointError(
            f"{what} is not finite (nan or inf): the iteration has left what {values.dtype} holds; lower the guidance "
            f"scale or start, and if the network runs in float16, run it in bfloat16 or float32"
        )
    return values
