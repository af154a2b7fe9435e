"""The mathematics of diffusion sampling and inversion: schedule, grids, solvers as tables, guidance.

Imports torch and numpy alone. Index i runs on a grid from the clean end, 0, to the noise end, grid.steps, T in
the paper. Schedules, grids and tables are float64; states are float32 or float64.
"""

from .belm import belm_denoise, belm_image_pair, belm_invert, belm_start
from .grids import Grid, discrete, log_snr, time_uniform
from .inversion import Inversion, InversionError, InversionReport, invert
from .prediction import DataPrediction, data_prediction, guided
from .sampling import denoise
from .schedule import NoiseSchedule
from .tables import StepTable, ddim, dpm_solver_pp_2m, exponential_ab2

__all__ = [
    "DataPrediction",
    "Grid",
    "Inversion",
    "InversionError",
    "InversionReport",
    "NoiseSchedule",
    "StepTable",
    "belm_denoise",
    "belm_image_pair",
    "belm_invert",
    "belm_start",
    "data_prediction",
    "ddim",
    "denoise",
    "discrete",
    "dpm_solver_pp_2m",
    "exponential_ab2",
    "guided",
    "invert",
    "log_snr",
    "time_uniform",
]
