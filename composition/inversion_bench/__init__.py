"""This package compares the inversions on one bench: what each reaches, at how many rows through the network, on real
scans and on the model's own samples.

    OUT/cells/          one JSON file for each cell: a scan, a prompt, a scale, a start, a method and a tolerance
    OUT/results.csv     every cell, one a line
    OUT/table.md        medians, worst cases and numbers that converged, and which method has the fewest rows
    OUT/pareto.png      error against rows, every scan faintly, the default inversion marked
    OUT/states.png      the error of the states along the trajectory
    OUT/commands.jsonl  each command that worked on OUT, and the seconds that it took
    OUT/errors.jsonl    the cells that failed, where there are any
    OUT/left_out.json   what of the folders was not used, and why

A cell is done if its file is there and tells the same scan, model, options and code; so the same command resumes a run
that was killed. Under torchrun several processes share the scans out. The bench reads `solvers.INVERSIONS` and knows no
method by itself, so that a new entry is on it at once.

measure.py says what is measured of a cell, editing.py and whiteness.py what else x[start] is good for, cost.py what it
took. scans.py and problems.py make the problems, and table.py, verdict.py and plots.py show what came of them.
"""

from sd21.lazy import lazily

__getattr__, __dir__, __all__ = lazily(__name__, {"run": ("InversionRequest", "run_inversions")})
