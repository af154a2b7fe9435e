"""This package reads published datasets of scans, and draws the benchmark samples from them (section 5.1).

DATASETS is the one table of them. A new dataset takes a reader (a function of its folder that returns a Dataset) and an
entry here; the benchmark's options --NAME and --NAME-samples follow from it.
"""

from .br35h import read_br35h
from .busi import read_busi
from .drawing import Benchmark, build_benchmark
from .reading import Dataset, Labelled, LeftOut, Published

DATASETS = {
    "br35h": Published("Br35H", read_br35h, samples=300),
    "busi": Published("BUSI", read_busi, samples=100),
}

__all__ = [
    "DATASETS",
    "Benchmark",
    "Dataset",
    "Labelled",
    "LeftOut",
    "Published",
    "build_benchmark",
    "read_br35h",
    "read_busi",
]
