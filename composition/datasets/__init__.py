"""The paper's two datasets as published, and the benchmark samples drawn from them (section 5.1)."""

from .benchmark import Benchmark, build_benchmark
from .br35h import read_br35h
from .busi import read_busi
from .reading import Dataset, DatasetError, Labelled, LeftOut

__all__ = ["Benchmark", "Dataset", "DatasetError", "Labelled", "LeftOut", "build_benchmark", "read_br35h", "read_busi"]
