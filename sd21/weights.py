"""This module brings weights from safetensors files into networks. It matches names one to one and copies every tensor
once, straight to its place. It knows neither a layout nor a network, so that every source of weights can use it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .files import irregular
from .words import one_line

FLOATING = ("F64", "F32", "F16", "BF16")


class CheckpointError(ValueError):
    """A source, a file or a set of keys that no Stable Diffusion 2.x model can be loaded from."""


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a safetensors file, or a run of its rows, seen under `shape`."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str
    first_row: int = 0

    def read(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The values in `dtype` on `device`, in memory of their own; convolutions channels_last.

        Raises CheckpointError if the file is no longer the one whose header was read.
        """
        layout = torch.channels_last if len(self.shape) == 4 else torch.contiguous_format
        values = torch.empty(self.shape, dtype=dtype, device=device, memory_format=layout)
        # The file is mapped anew for every tensor: pages of a mapping that stays open count as resident, and by the
        # last tensor the whole file would be in memory a second time.
        with _opened(self.file) as file:
            if self.shape:
                rows = file.get_slice(self.key)[self.first_row : self.first_row + self.shape[0]]
            else:  # a scalar has no rows
                rows = file.get_tensor(self.key)
            if rows.numel() != math.prod(self.shape):
                raise CheckpointError(
                    f"{self.file} changed while it was read: its tensors have other shapes; load again"
                )
            return values.copy_(rows.view(self.shape))


def index(files: Iterable[Path]) -> dict[str, Stored]:
    """Everything the safetensors `files` hold, by key, from their headers alone. Several files are shards of one set.

    Raises CheckpointError for a file that is missing, truncated or not in the safetensors format.
    """
    stored = {}
    for path in files:
        with _opened(path) as file:
            for key in file.keys():
                if key in stored:
                    raise CheckpointError(f"both {stored[key].file} and {path} hold {listed([key])}; remove one")
                entry = file.get_slice(key)
                stored[key] = Stored(path, key, tuple(entry.get_shape()), entry.get_dtype())
    return stored


def metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself, in its header; empty if it says nothing. Raises what `index` raises."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def check(module: nn.Module, stored: Mapping[str, Stored], name: str) -> None:
    """Raise CheckpointError, naming the keys, unless `stored` and `module` hold the same keys with the same shapes."""
    expected = module.state_dict()
    both = expected.keys() & stored.keys()
    faults = {
        "missing": expected.keys() - stored.keys(),
        "unexpected": stored.keys() - expected.keys(),
        "mis-shaped": {
            f"{key} is {stored[key].shape}, expected {tuple(expected[key].shape)}"
            for key in both
            if stored[key].shape != tuple(expected[key].shape)
        },
        "not floating-point": {f"{key} is {stored[key].dtype}" for key in both if stored[key].dtype not in FLOATING},
    }
    if any(faults.values()):
        found = "; ".join(f"{len(keys)} {kind} ({listed(keys)})" for kind, keys in faults.items() if keys)
        raise CheckpointError(
            f"the weights of {name} do not fit its network: {found}. Weights and config must come from the same "
            "Stable Diffusion 2.x model, whole and not quantised."
        )


def fill(module: nn.Module, stored: Mapping[str, Stored], device: torch.device, dtype: torch.dtype) -> None:
    """Give a module built on the meta device its values, frozen and in evaluation mode. Call `check` first."""
    values = {key: stored[key].read(device, dtype) for key in module.state_dict()}
    module.load_state_dict(values, strict=True, assign=True)
    module.eval().requires_grad_(False)


def listed(names: Iterable[str], limit: int = 6) -> str:
    """The first few of the names in their order, each short, and how many more there are."""
    names = sorted(names)
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(one_line(name, 80) for name in names[:limit]) + more


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file, open. What its reader raises for damage, on opening or later, becomes a CheckpointError."""
    if what := irregular(path):
        raise CheckpointError(f"{what}: {path}; expected a .safetensors file")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"the name of {path!a} is no text, and safetensors opens none such; rename it") from None
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a safetensors file ({one_line(str(error))}). It is truncated, damaged or of "
            "another format: compare its size and sha256 with the publisher's and fetch it again."
        ) from error
