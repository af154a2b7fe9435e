"""The inversions, one file each, and the table that names them. A method of your own is a file with a function
`(run, tol, max_sweeps, progress) -> Solution` and an entry here.
"""

from .bdia import bdia_denoise, bdia_from_one_state, solve_bdia
from .belm import belm_denoise, belm_from_one_state, solve_belm
from .ddpm import ddpm_denoise, ddpm_from_one_state, solve_ddpm
from .defect import solve_defect
from .edict import edict_denoise, edict_from_one_state, solve_edict
from .frozen import solve_frozen
from .joint import solve_joint
from .method import InversionMethod, OwnSampler
from .naive import solve_naive

INVERSIONS: dict[str, InversionMethod] = {
    "joint": InversionMethod(solve_joint, exact=True),
    "defect": InversionMethod(solve_defect, exact=True),
    "naive": InversionMethod(solve_naive, exact=False),
    "naive-unmeasured": InversionMethod(solve_naive, exact=False, measured=False),
    "frozen": InversionMethod(solve_frozen, exact=False),
    "edict": InversionMethod(solve_edict, exact=False, sampler=OwnSampler(edict_denoise, edict_from_one_state)),
    "bdia": InversionMethod(solve_bdia, exact=False, sampler=OwnSampler(bdia_denoise, bdia_from_one_state)),
    "belm": InversionMethod(solve_belm, exact=False, sampler=OwnSampler(belm_denoise, belm_from_one_state)),
    # It stores noises, and its states are drawn, each by itself: no trajectory.
    "ddpm": InversionMethod(
        solve_ddpm, exact=False, sampler=OwnSampler(ddpm_denoise, ddpm_from_one_state), trajectory=False
    ),
}

__all__ = ["INVERSIONS", "InversionMethod", "OwnSampler"]
