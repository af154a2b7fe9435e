"""The inversions, one file each, and the table that names them. A method of your own is a file with a function
`(run, tol, max_sweeps, progress) -> Solution` and an entry here.
"""

from . import belm
from .defect import solve_defect
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
    "belm": InversionMethod(belm.solve_belm, exact=False, sampler=belm.SAMPLER),
}

__all__ = ["INVERSIONS", "InversionMethod", "OwnSampler"]
