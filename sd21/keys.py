"""This module sorts the keys of weights files before a layout's reader renames them. Training scripts and other tools
wrap keys and add tensors of their own. Here the wrappers come off, and the extras are set aside and told of. It is
apart from the readers because both layouts need it."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from .weights import CheckpointError, Stored, listed

# Extras of any file: a trainer's counters, and the positions 0, 1, ..., 76, which older libraries saved as a buffer.
EVERYWHERE = ("global_step", "epoch", "position_ids", "*.position_ids")


def sort_out(stored: Mapping[str, Stored], extras: Iterable[str]) -> tuple[dict[str, Stored], Counter]:
    """The tensors by their names without wrappers, and how many extras were left out, by pattern.

    extras: patterns as of `fnmatch`, for names without wrappers. Raises CheckpointError for two keys of one name.
    """
    kept, left_out = {}, Counter()
    extras = (*EVERYWHERE, *extras)
    for key, tensor in stored.items():
        name = _unwrapped(key)
        pattern = next((pattern for pattern in extras if fnmatchcase(name, pattern)), None)
        if pattern is None:
            add(kept, name, tensor)
        else:
            left_out[pattern] += 1
    return kept, left_out


def add(tensors: dict[str, Stored], name: str, tensor: Stored) -> None:
    """Enter a tensor under its name in the network. Raises CheckpointError if another tensor has that name already."""
    if name in tensors:
        both = listed([tensors[name].key, tensor.key])
        raise CheckpointError(f"{tensor.file}: two tensors are {listed([name])} of the network ({both}); remove one")
    tensors[name] = _as_linear(name, tensor)


def tell(source: object, left_out: Mapping[str, int], notes: Iterable[str] = ()) -> None:
    """Name the extras of one checkpoint in one line of the log "sd21", with `notes`, whole sentences. Says nothing
    where nothing was left out."""
    if left_out:
        named = listed(f"{pattern} ({count})" if "*" in pattern else pattern for pattern, count in left_out.items())
        sentences = (f"{source} also holds what no network here reads; it is left out: {named}.", *notes)
        logging.getLogger("sd21").warning("%s", " ".join(sentences))


def _unwrapped(key: str) -> str:
    """`key` without the marks of torch.compile, anywhere, and of a saved training state, in front."""
    return ".".join(part for part in key.split(".") if part != "_orig_mod").removeprefix("state_dict.")


def _as_linear(name: str, tensor: Stored) -> Stored:
    """LDM, and files converted from it, hold the VAE's attention as 1x1 convolutions, which are linear maps."""
    if ".mid_block.attentions.0.to_" in name and tensor.shape[2:] == (1, 1):
        return replace(tensor, shape=tensor.shape[:2])
    return tensor
