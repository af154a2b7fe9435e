"""A noise schedule says how much signal and how much noise there is at every time; this module holds it, in float64. It
stands apart from the grids because it belongs to the network, which was trained on it, while a grid belongs to a run.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving schedule of N training times, continued between them (DPM-Solver, arXiv:2206.00927).

    Training time n = 0..N-1 sits at continuous time t = (n + 1) / N, and log(alpha) is linear between neighbours. So t
    runs from 1/N (clean end) to 1 (noise end); the network's own time is n = t * N - 1, any real number in [0, N - 1].

    log_alphas: (N,) float64, log(alpha) at the training times, strictly decreasing and below 0.
    """

    log_alphas: Tensor

    def __post_init__(self) -> None:
        log_alphas = self.log_alphas
        if log_alphas.dtype != torch.float64 or log_alphas.ndim != 1 or len(log_alphas) < 2:
            raise ValueError(
                f"a schedule needs two or more log_alphas in one float64 row, got {log_alphas.dtype} of shape "
                f"{tuple(log_alphas.shape)}; use NoiseSchedule.from_alphas_cumprod or from_betas"
            )
        if not (torch.isfinite(log_alphas).all() and log_alphas[0] < 0 and (log_alphas.diff() < 0).all()):
            raise ValueError(
                "alphas_cumprod must fall strictly, inside (0, 1); a schedule with no signal left at its last time "
                "(zero terminal SNR) has no finite log-SNR there and is not supported"
            )

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> "NoiseSchedule":
        """alphas_cumprod: (N,) alpha² at the training times, in (0, 1), decreasing. ValueError otherwise."""
        return cls(0.5 * torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu").log())

    @classmethod
    def from_betas(cls, betas: Tensor) -> "NoiseSchedule":
        """betas: (N,) in (0, 1), with alpha² = cumprod(1 - beta). ValueError otherwise."""
        return cls(0.5 * torch.log1p(-torch.as_tensor(betas, dtype=torch.float64, device="cpu")).cumsum(0))

    @property
    def training_times(self) -> int:
        """N, the number of times the network was trained on."""
        return len(self.log_alphas)

    def log_alpha(self, t: Tensor) -> Tensor:
        """log(alpha) at continuous times t in [1/N, 1]; any shape, float64. ValueError outside the interval."""
        t = torch.as_tensor(t, dtype=torch.float64)
        first = 1 / self.training_times
        if not ((t >= first) & (t <= 1)).all():
            raise ValueError(f"continuous time must lie in [{first:g}, 1], got {t.min():g} to {t.max():g}")
        return torch.as_tensor(np.interp(t, self._times(), self.log_alphas))

    def lam(self, t: Tensor) -> Tensor:
        """Half log-SNR, log(alpha / sigma), at continuous times t in [1/N, 1]; decreases in t."""
        return half_log_snr(self.log_alpha(t))

    def time(self, lam: Tensor) -> Tensor:
        """The inverse of `lam`: continuous times in [1/N, 1]. ValueError where the schedule does not reach lam."""
        lam = torch.as_tensor(lam, dtype=torch.float64)
        lowest, highest = half_log_snr(self.log_alphas[[-1, 0]]).tolist()
        slack = 1e-12 * (highest - lowest)  # lam of an end point may come back one rounding outside
        if not ((lam >= lowest - slack) & (lam <= highest + slack)).all():
            raise ValueError(f"lam must lie in [{lowest:g}, {highest:g}], got {lam.min():g} to {lam.max():g}")
        log_alpha = 0.5 * torch.nn.functional.logsigmoid(2 * lam)
        return torch.as_tensor(np.interp(log_alpha, self.log_alphas.flip(0), self._times()[::-1]))

    def _times(self) -> np.ndarray:
        return np.arange(1, self.training_times + 1) / self.training_times


def half_log_snr(log_alpha: Tensor) -> Tensor:
    """lam = log(alpha / sigma) from log(alpha), with sigma² = 1 - alpha² taken through expm1."""
    return log_alpha - 0.5 * torch.log(-torch.expm1(2 * log_alpha))
