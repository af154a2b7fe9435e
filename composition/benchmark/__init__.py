"""The paper's evidence (section 5): every method on every sample, the metrics, the tables, the grids and the ablations.

    OUT/samples/                     the benchmark's samples (datasets/drawing.py)
    OUT/inversions/                  inversions, shared by all methods that take the same
    OUT/runs/VARIANT/                a method's composites and records, as `batch` writes them
    OUT/runs/VARIANT/measures/ID.json  their metrics, each with the network it came from
    OUT/samples.csv                  one row per sample and variant: rows through the UNet, and metrics
    OUT/table.{md,json}, grid.png    the paper's Tab. 1 and Fig. 7
    OUT/ablation_start.{md,json,png}, ablation_start_grid.png   its Tab. 2 and Fig. 8
    OUT/ablation_tau.{md,json,png}, ablation_tau_grid.png       its Fig. 9
    OUT/errors.jsonl                 the samples that failed, if any did

A composite is made when its record is there, and a metric of it is measured when its value is; whatever is there is
kept. So the same command resumes a run that was killed, and one with more methods, ablations or metrics adds them to
what is done. Tables, grids and samples.csv show what the last command named, so name all that is wanted.

A new method is one entry of methods.METHODS, a new metric one of metrics.METRICS, a new dataset one of
datasets.DATASETS: nothing in here knows any of them by name but the order of the paper's figure.
"""

from sd21.lazy import lazily

__getattr__, __dir__, __all__ = lazily(__name__, {"run": ("Request", "run_benchmark")})
