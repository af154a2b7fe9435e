"""This package makes the paper's evidence (section 5): it runs every method on every sample, and writes the metrics,
the tables, the grids and the ablations.

    OUT/samples/                     the benchmark's samples (datasets/drawing.py), and the manifest of the first few
                                     of each dataset where the ablations have fewer
    OUT/inversions/                  inversions, shared by all methods that take the same
    OUT/runs/VARIANT/                a method's composites and records, as `batch` writes them
    OUT/runs/VARIANT/measures/ID.json  their metrics, each with the network it came from
    OUT/samples.csv                  one row per sample and variant: rows through the UNet, and metrics
    OUT/table.{md,json}, grid.png    the paper's Tab. 1 and Fig. 7
    OUT/ablation_start.{md,json,png}, ablation_start_grid.png   its Tab. 2 and Fig. 8
    OUT/ablation_tau.{md,json,png}, ablation_tau_grid.png       its Fig. 9
    OUT/ablation_steps.{md,json}, ablation_steps_grid.png       each step beyond the paper, added alone to the paper's
                                     own method and taken away alone from ours
    OUT/errors.jsonl                 the samples that failed, if any did

Baselines stand in the table as published, without the steps beyond the paper. Those that look at the object stand there
a second time, with the placed and matched object that ours is given (VARIANT is then published_matched and so on). The
paper's own method, as published and by Settings.paper() (VARIANT paper), stands in every table. Every composite is
measured against the object that it was given.

A composite counts as made if its record is there, and a metric of it as measured if its value is there; whatever is
there is kept. So the same command resumes a run that was killed, and a command with more methods, ablations or metrics
adds them to what is done. Tables, grids and samples.csv show only what the last command named, so name all that you
want.

A new method is one entry of methods.METHODS, a new metric one of metrics.METRICS, and a new dataset one of
datasets.DATASETS. Nothing in this package has to change for them.
"""

from sd21.lazy import lazily

__getattr__, __dir__, __all__ = lazily(__name__, {"run": ("BenchmarkRequest", "run_benchmark")})
