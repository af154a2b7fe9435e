"""This package measures what labels are worth: a small segmenter learns from N real labelled scans, with and without
composites of their tumours, and is scored on scans that it has not seen.

    OUT/runs/N/ARM/SEED.json    one training: the scores of every test scan, and the curves; a training is done when it
                                is there
    OUT/asked.json              how all trainings are done, and what scans there are, which no later run may change
    OUT/drawn.json              the real scans that each seed draws, by file and SHA-256, and the composites of each arm
    OUT/results.csv             every arm, N, seed and test scan
    OUT/table.md, table.json    means, their spread over the seeds, and the paired intervals over the test scans
    OUT/bars.png, curves.png    every seed as a point; loss and Dice over the steps
    OUT/commands.jsonl          each command that worked on OUT, and the seconds that it took
    OUT/left_out.json           what of the folders was not used, and why

A training is done if its file is there and tells the same scans, options and versions; so the same command resumes a
run that was killed. Under torchrun several processes share the trainings out.
"""

from sd21.lazy import lazily

__getattr__, __dir__, __all__ = lazily(__name__, {"run": ("UtilityRequest", "run_utility"), "drawn": ("write_drawn",)})
