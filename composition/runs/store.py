"""This module keeps inversions for reuse, in memory and on disk: a mapping from `inversion_key` to `Trajectory`.

A method takes any mapping. This one outlives the process, and several processes may share it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sd21.files import atomic
from sd21.folders import FolderError
from sd21.words import one_line
from solvers import InversionReport

from ..inversions import Trajectory


class InversionStore(MutableMapping[str, Trajectory]):
    """The last `keep` trajectories in memory (3.5 MB each at 512 x 512 and start = 6), all of them in `folder` if any.

    One safetensors file per trajectory, which carries its report, its key and a SHA-256 of its tensors. A file that is
    damaged, or is not what its name says, is warned of and counts as absent, so that it is made again. Any number of
    processes may share a folder: files appear whole, and whoever makes one twice makes the same. In one process one
    thread may use a store. Raises FolderError for a folder that is a file.
    """

    def __init__(self, folder: str | Path | None = None, keep: int = 64):
        self.folder = None if folder is None else Path(folder)
        self.keep = keep
        self._recent: OrderedDict[str, Trajectory] = OrderedDict()
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise FolderError(f"{self.folder} is a file; name a folder to keep inversions in")

    def __getitem__(self, key: str) -> Trajectory:
        if key not in self._recent:
            path = self._path(key)
            if path is None or not path.exists():
                raise KeyError(key)
            if not path.is_file():  # to open a pipe would wait for its writer
                raise OSError(f"{path} is no regular file, and stands where an inversion is to be kept; remove it")
            try:
                self._remember(key, _read(path, key))
            except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
                why = one_line(str(error))
                warnings.warn(f"stored inversion {path} is unusable and will be made again: {why}", stacklevel=2)
                raise KeyError(key) from error
        self._recent.move_to_end(key)
        return self._recent[key]

    def __setitem__(self, key: str, trajectory: Trajectory) -> None:
        decoded = None if trajectory.decoded is None else trajectory.decoded.cpu()
        trajectory = replace(trajectory, states=trajectory.states.cpu(), decoded=decoded)
        if (path := self._path(key)) is not None:
            _write(path, key, trajectory)
        self._remember(key, trajectory)

    def __delitem__(self, key: str) -> None:
        path = self._path(key)
        if self._recent.pop(key, None) is None and (path is None or not path.exists()):
            raise KeyError(key)
        if path is not None:
            path.unlink(missing_ok=True)

    def __iter__(self) -> Iterator[str]:
        on_disk = () if self.folder is None else (path.stem for path in self.folder.glob("[!.]*.safetensors"))
        yield from dict.fromkeys([*self._recent, *on_disk])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _path(self, key: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key}.safetensors"

    def _remember(self, key: str, trajectory: Trajectory) -> None:
        self._recent[key] = trajectory
        while len(self._recent) > self.keep:
            self._recent.popitem(last=False)


def _write(path: Path, key: str, trajectory: Trajectory) -> None:
    tensors = {"states": trajectory.states.contiguous()}
    if trajectory.decoded is not None:
        tensors["decoded"] = trajectory.decoded.contiguous()
    about = {"key": key, "report": asdict(trajectory.report), "sha256": _digest(tensors)}
    # One entry, as the library writes several in any order, and equal trajectories are to be equal bytes.
    metadata = {"about": json.dumps(about)}
    with atomic(path) as temporary:
        temporary.write_bytes(save(tensors, metadata))  # the library's own writing leaves other temporaries when killed


def _read(path: Path, key: str) -> Trajectory:
    """Raises one of several errors for a file that is not a whole and sound trajectory of that key."""
    with safe_open(path, framework="pt") as file:
        about, tensors = json.loads(file.metadata()["about"]), {name: file.get_tensor(name) for name in file.keys()}
    if about["key"] != key or about["sha256"] != _digest(tensors):
        raise ValueError("its contents are not what was stored")
    report = InversionReport(**about["report"] | {"residuals": tuple(about["report"]["residuals"])})
    return Trajectory(tensors["states"], report, tensors.get("decoded"))


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    return digest.hexdigest()
