"""This file makes every test run on one thread. On the tests' small tensors a second thread costs more than it brings,
above all on a busy machine. The last bits of a result depend on the number of threads, and one is the same everywhere.
Only the tests of the true size take all threads."""

import torch

ALL_THREADS = torch.get_num_threads()
torch.set_num_threads(1)
