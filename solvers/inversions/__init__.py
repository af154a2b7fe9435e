"""The inversions, one file each, and the table that names them. A method of your own is a file with a function
`(run, tol, max_sweeps, progress) -> Solution` and an entry here.
"""

from . import belm, ddim
from .defect import solve_defect
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
    "ddim": InversionMethod(ddim.solve_ddim, exact=False, sampler=ddim.SAMPLER),
    "frozen": InversionMethod(solve_frozen, exact=False),
    "fixed-point": InversionMethod(solve_fixed_point, exact=False),
    "fixed-point-anderson": InversionMethod(solve_fixed_point_anderson, exact=False),
    "renoise": InversionMethod(solve_renoise, exact=False),
    "guided-newton": InversionMethod(solve_guided_newton, exact=False),
    "guided-newton-released": InversionMethod(solve_guided_newton_released, exact=False),
    "exact-dpm": InversionMethod(solve_exact_dpm, exact=False),
    "belm": InversionMethod(belm.solve_belm, exact=False, sampler=belm.SAMPLER),
}

__all__ = ["INVERSIONS", "InversionMethod", "OwnSampler"]
