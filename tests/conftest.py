"""Every test runs on one thread: on their small tensors a second one costs more than it brings, on a busy machine above
all, and results do not depend on how many there are. The true size takes them all."""

import torch

ALL_THREADS = torch.get_num_threads()
torch.set_num_threads(1)
