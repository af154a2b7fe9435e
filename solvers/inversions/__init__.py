"""The inversions, one file each, and the table that names them. A method of your own is a file with a function
`(run, tol, max_sweeps, progress) -> Solution` and an entry here.
"""

from .bdia import bdia_denoise, bdia_from_one_state, solve_bdia
from .belm import belm_denoise, belm_from_one_state, solve_belm
from .ddim import ddim_denoise, solve_ddim
from .ddpm import ddpm_denoise, ddpm_from_one_state, solve_ddpm
from .defect import solve_defect
from .edict import edict_denoise, edict_from_one_state, solve_edict
from .exact_dpm import solve_exact_dpm
from .fixed_point import solve_fixed_point, solve_fixed_point_anderson
from .frozen import solve_frozen
from .guided_newton import solve_guided_newton, solve_guided_newton_released
from .joint import solve_joint
from .method import InversionMethod, OwnSampler
from .naive import solve_naive
from .renoise import solve_renoise

INVERSIONS: dict[str, InversionMethod] = {
    "joint": InversionMethod(solve_joint, exact=True),
    "defect": InversionMethod(solve_defect, exact=True),
    "naive": InversionMethod(solve_naive, exact=False),
    "naive-unmeasured": InversionMethod(solve_naive, exact=False, measured=False),
    "ddim": InversionMethod(solve_ddim, exact=False, sampler=OwnSampler(ddim_denoise)),
    "frozen": InversionMethod(solve_frozen, exact=False),
    "fixed-point": InversionMethod(solve_fixed_point, exact=False),
    "fixed-point-anderson": InversionMethod(solve_fixed_point_anderson, exact=False),
    "renoise": InversionMethod(solve_renoise, exact=False),
    "guided-newton": InversionMethod(solve_guided_newton, exact=False),
    "guided-newton-released": InversionMethod(solve_guided_newton_released, exact=False),
    "exact-dpm": InversionMethod(solve_exact_dpm, exact=False),
    "edict": InversionMethod(solve_edict, exact=False, sampler=OwnSampler(edict_denoise, edict_from_one_state)),
    "bdia": InversionMethod(solve_bdia, exact=False, sampler=OwnSampler(bdia_denoise, bdia_from_one_state)),
    "belm": InversionMethod(solve_belm, exact=False, sampler=OwnSampler(belm_denoise, belm_from_one_state)),
    # It stores noises, and its states are drawn, each by itself: no trajectory.
    "ddpm": InversionMethod(
        solve_ddpm, exact=False, sampler=OwnSampler(ddpm_denoise, ddpm_from_one_state), trajectory=False
    ),
}

__all__ = ["INVERSIONS", "InversionMethod", "OwnSampler"]
