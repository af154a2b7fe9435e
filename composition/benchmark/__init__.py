"""The paper's evidence (section 5): every method on every sample, the metrics, the tables, the grids and the ablations.

    OUT/samples/                     the benchmark's samples (datasets/benchmark.py)
    OUT/inversions/                  inversions, shared by all methods that take the same
    OUT/runs/VARIANT/                a method's composites and records, as `batch` writes them
    OUT/runs/VARIANT/measures/ID.json  their metrics
    OUT/samples.csv                  one row per sample and variant: network evaluations and metrics
    OUT/table.{md,json}, grid.png    the paper's Tab. 1 and Fig. 7
    OUT/ablation_start.{md,json,png}, ablation_start_grid.png   its Tab. 2 and Fig. 8
    OUT/ablation_tau.{md,json,png}, ablation_tau_grid.png       its Fig. 9
    OUT/errors.jsonl                 the samples that failed, if any did

A composite is made when its record is there, and measured when its measures are; whatever is there is kept. So the same
command resumes a run that was killed, and one with more methods, ablations or metrics adds them to what is done.
Tables, grids and samples.csv show what the last command named, so name all that is wanted.
"""

from .networks import Networks, find_networks
from .run import Request, run_benchmark

__all__ = ["Networks", "Request", "find_networks", "run_benchmark"]
