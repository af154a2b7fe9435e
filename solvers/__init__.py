"""This package holds the mathematics of diffusion sampling and inversion: the noise schedule, time grids, solvers as
tables of numbers, and guidance. It stands apart because it needs no network of ours: it imports torch and numpy alone.

Index i runs on a grid from the clean end, 0, to the noise end, grid.steps, which is T in the paper. A solver is a
function from a grid to a table of numbers. `sample` and `denoise` run a table; `invert` takes the solver, since it
makes tables for two grids. Schedules, grids and tables are float64; states are float32 or float64.
"""

from .grids import GRIDS, Grid, discrete, log_snr, time_uniform
from .inversion import Inversion, InversionError, InversionReport, invert
from .inversions import INVERSIONS, InversionMethod, OwnSampler
from .inversions.run import Run, Solution
from .prediction import CallRows, DataPrediction, data_prediction, guided
from .sampling import denoise, history_at, sample
from .schedule import NoiseSchedule
from .tables import (
    SOLVERS,
    Solver,
    StepTable,
    ddim,
    dpm_solver_pp_2m,
    dpm_solver_pp_3m,
    exponential_ab2,
    exponential_ab3,
    unip3,
)

__all__ = [
    "GRIDS",
    "INVERSIONS",
    "SOLVERS",
    "CallRows",
    "DataPrediction",
    "Grid",
    "Inversion",
    "InversionError",
    "InversionMethod",
    "InversionReport",
    "NoiseSchedule",
    "OwnSampler",
    "Run",
    "Solution",
    "Solver",
    "StepTable",
    "data_prediction",
    "ddim",
    "denoise",
    "discrete",
    "dpm_solver_pp_2m",
    "dpm_solver_pp_3m",
    "exponential_ab2",
    "exponential_ab3",
    "guided",
    "history_at",
    "invert",
    "log_snr",
    "sample",
    "time_uniform",
    "unip3",
]
